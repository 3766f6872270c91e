"""Conversations about a few pictures, one turn after the other: what of the draft's pages each turn finds
again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine.config import TreeLimits
from engine.draft.pages import DraftPages
from engine.draft.slots import WHOLE, SlotMap, View
from engine.encoder_cache import EncoderCache
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.plan import StepLimits
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from processing.prompt import ImageInput, Prompt
from tests.engine.draft_truth import TAGS, DraftWriter, contents, num_kept
from tests.engine.test_scheduler_machine import IMAGE_TOKEN, fingerprints

SIZES = (3, 6, 6, 14)  # visual tokens of the pictures there are


@dataclass(slots=True)
class Turn:
    """What has been said. ``tags``: how each picture is to be seen."""

    token_ids: list[int] = field(default_factory=list)
    images: list[ImageInput] = field(default_factory=list)
    tags: list[str | None] = field(default_factory=list)

    def say(self, *words: int) -> Turn:
        self.token_ids += words
        return self

    def show(self, name: int, tag: str | None, cut: bool = False) -> Turn:
        """A picture, with a word between its first token and the others if ``cut``."""
        start, size = len(self.token_ids), SIZES[name]
        spans = [(start, 1), (start + 2, size - 1)] if cut else [(start, size)]
        self.token_ids += [IMAGE_TOKEN] * size
        if cut:
            self.token_ids.insert(start + 1, 0)
        self.images.append(ImageInput(hash=bytes([name, cut]), spans=spans, tensors={}))
        self.tags.append(tag)
        return self


class Chats:
    """An engine of numbers that answers one turn at a time. ``found``: what each started with."""

    def __init__(self, page_size: int, chunk: int = 1000, draft_pages: int = 500) -> None:
        pool = PagePool(500)
        pages = DraftPages(PagePool(draft_pages), page_size, num_kept=num_kept)
        self.encoder: EncoderCache[Any] = EncoderCache(1000)
        self.scheduler = Scheduler(
            StepLimits(4, chunk, 1000), pool, self.encoder, caching=True, draft_pages=pages
        )
        self.pool, self.pages, self.page_size = pool, pages, page_size
        self.draft = DraftWriter(pages, caching=True)
        self.count = 0

    def ask(self, turn: Turn, answer: list[int], rng: random.Random, look: float = 1.0) -> Sequence:
        """The sequence as it was when it ended; the answer joins the turn."""
        self.count += 1
        request = GenerateRequest(
            request_id=str(self.count),
            prompt=Prompt(token_ids=list(turn.token_ids), images=list(turn.images)),
            sampling=SamplingParams(max_tokens=len(answer)),
        )
        sequence = Sequence.from_request(
            request,
            arrival=self.count,
            table=PageTable(self.pool, self.page_size),
            eos_token_ids=frozenset(),
            max_model_len=1000,
            limits=TreeLimits(num_steps=6, topk=6, num_draft_tokens=32),
            views=[View(i, i.hash, (), tag) for i, tag in zip(turn.images, turn.tags, strict=True)],
        )
        self.scheduler.add(sequence)
        left = list(answer)
        while left:
            plan = self.scheduler.schedule()
            for key in plan.encode:
                self.encoder.put(key, "embeddings")
            (span,) = plan.spans
            self.scheduler.commit(span, [left.pop(0)] if span.samples else [], span.end)
            self.scheduler.check()
            if left and rng.random() < look:
                states = fingerprints(sequence.token_ids, sequence.images, "")
                self.draft.look(sequence, states, rng, num_nodes=3)
                self.scheduler.check()
        turn.token_ids += answer
        assert self.pages.pool.num_available == self.pages.pool.num_pages, "draft pages leaked"
        return sequence


def start_of(sequence: Sequence) -> tuple[bool, int]:
    """Whether its draft began with everything that the target began with, and tokens from the cache."""
    assert sequence.draft_slots is not None
    return not any(block.tag is None for block in sequence.draft_slots.blocks), sequence.num_cached or 0


@pytest.mark.parametrize("page_size", [1, 4, 5])
def test_nobody_finds_what_is_not_his(page_size: int) -> None:
    """Random conversations: what the draft reads, it wrote or found. Most turns find all of it again."""
    began = []
    for seed in range(120):
        rng = random.Random(seed)
        chats = Chats(page_size, chunk=rng.choice([4, 7, 1000]), draft_pages=rng.choice([15, 500]))
        seen = chats.pages.open

        def opened(sequence: Sequence, seen: Any = seen) -> None:
            seen(sequence)
            if sequence.num_computed and sequence.draft is not None:
                began.append((sequence.draft.aligned, bool(sequence.draft.loan.pages)))

        chats.pages.open = opened  # type: ignore[method-assign]
        turns: list[Turn] = []
        for _ in range(rng.randint(2, 7)):
            turn = rng.choice(turns) if turns and rng.random() < 0.6 else Turn().say(1, 2, 0)
            if rng.random() < 0.7 and len(turn.images) < 3:
                turn.show(rng.randrange(4), rng.choice([None, *TAGS]), cut=rng.random() < 0.3)
            turn.say(*(rng.randrange(2) for _ in range(rng.randint(1, 6))))
            answer = [rng.randrange(2) for _ in range(rng.randint(1, 8))]
            chats.ask(turn, answer, rng, look=rng.choice([0.5, 1.0]))
            turns.append(turn)
    assert len(began) > 200
    assert sum(aligned for aligned, _ in began) > len(began) * 0.5, "the draft's cache is of little use"
    assert page_size == 1 or sum(loan for _, loan in began) > len(began) * 0.2, "no page was ever borrowed"


def test_turns_about_a_picture_find_it_however_the_pages_end() -> None:
    """Other questions about a picture, which part within a page or behind it; and the chat going on."""
    for tag in TAGS:
        for before in range(9):
            chats, rng = Chats(page_size=4), random.Random(0)
            for question in range(3):
                turn = Turn().say(*[1] * before).show(3, tag).say(question, 2)
                begun = chats.ask(turn, [1] * 9, rng)
                assert start_of(begun) == (True, 0 if not question else (before + SIZES[3]) // 4 * 4), tag
            turn.say(5, 6)
            begun = chats.ask(turn, [1, 2], rng)
            assert start_of(begun)[0]
            assert chats.pages.counts.by_branch == {tag: 1}, "a picture was taken in again"


def test_a_picture_goes_on_as_it_was_first_seen() -> None:
    """Its features are not to be had on a prefix hit: what was asked for cannot be made then."""
    for first, later in (("one", "half"), ("half", None), (None, "text_only"), ("one", WHOLE)):
        chats, rng = Chats(page_size=4), random.Random(1)
        begun = chats.ask(Turn().say(1, 2).show(2, first).say(1, 1), [1] * 9, rng)
        assert begun.draft_slots is not None
        (was,) = begun.draft_slots.blocks
        begun = chats.ask(Turn().say(1, 2).show(2, later).say(2, 2, 1), [1] * 9, rng)
        assert begun.draft_slots is not None
        assert [block.tag for block in begun.draft_slots.blocks] == [was.tag]
        other = chats.ask(Turn().say(2).show(2, later).say(2, 2, 1), [1] * 9, rng)
        assert other.draft_slots is not None
        if later is not None:
            assert [block.tag for block in other.draft_slots.blocks] == [later], "no hit, no reason"


def test_the_gate_is_asked_once_about_a_picture() -> None:
    chats = Chats(page_size=4)
    tags = set()
    for seed in range(6):  # another prompt each time, so no page is found again
        begun = chats.ask(Turn().say(seed).show(1, None).say(1, 1), [1] * 4, random.Random(seed))
        assert begun.draft_slots is not None
        tags |= {block.tag for block in begun.draft_slots.blocks}
    assert len(tags) == 1


def test_a_picture_that_no_draft_has_seen_is_left_out() -> None:
    chats, rng = Chats(page_size=4), random.Random(0)
    chats.ask(Turn().say(1, 2, 1).show(3, "half").say(1, 1), [1] * 9, rng, look=0.0)
    begun = chats.ask(Turn().say(1, 2, 1).show(3, "half").show(0, "one").say(1, 2), [1] * 9, rng)
    assert begun.draft_slots is not None
    assert [block.tag for block in begun.draft_slots.blocks] == [None, "one"]
    again = chats.ask(Turn().say(1, 2, 1).show(3, "half").show(0, "one").say(1, 2, 0), [1] * 9, rng)
    assert again.draft_slots is not None
    assert [block.tag for block in again.draft_slots.blocks] == [None, None], "slots with a gap were shared"


def layouts(rng: random.Random) -> Iterator[tuple[SlotMap, list[int], list[int]]]:
    """A random prompt under several choices of branches: its map, its tokens and what each slot must hold."""
    turn = Turn()
    for _ in range(rng.randint(0, 3)):
        turn.say(*(rng.randrange(2) for _ in range(rng.randint(0, 4))))
        turn.show(rng.randrange(4), None, cut=rng.random() < 0.3)
    turn.say(*(rng.randrange(2) for _ in range(rng.randint(1, 4))))
    states = fingerprints(turn.token_ids, turn.images, "")
    for _ in range(4):
        slots = SlotMap(b"", page_size=4)
        for image in turn.images:
            view, tag = View(image, b"", (), None), rng.choice(TAGS)
            slots.add(view, turn.token_ids, tag, num_kept(tag, view))
        yield slots, turn.token_ids, contents(states, slots.blocks, b"")


def test_equal_hashes_are_equal_slots_and_the_other_way_round() -> None:
    by_hash: dict[bytes, tuple[int, ...]] = {}
    by_content: dict[tuple[int, ...], bytes] = {}
    for seed in range(300):
        for slots, token_ids, held in layouts(random.Random(seed)):
            assert slots.slot_of(len(token_ids)) == len(held)
            inside = {i for b in slots.blocks if b.is_cut for i in range(b.first_slot + 1, b.end_slot)}
            for count in set(range(1, len(held) + 1)) - inside:
                content, name = tuple(held[:count]), slots.part_hash(token_ids, count)
                assert by_hash.setdefault(name, content) == content
                assert by_content.setdefault(content, name) == name, "what is equal is not shared"
            for page, name in enumerate(slots.hashes):
                content = tuple(held[: 4 * page + 4])
                assert by_hash.setdefault(name, content) == content
    assert len(by_hash) > 5000


def test_a_page_may_have_several_names_and_loses_all_of_them() -> None:
    pool = PagePool(1)
    pages = pool.allocate(1)
    for name in (b"a", b"b", b"a"):
        pool.publish(pages[0], name)
    pool.release(pages)
    pool.check([])
    assert pool.lookup([b"a"]) == pool.lookup([b"b"]) == pages
    pool.allocate(1)
    assert pool.lookup([b"a"]) == pool.lookup([b"b"]) == []
