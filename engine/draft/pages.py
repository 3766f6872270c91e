"""The draft's page pool, how a sequence starts in it, and what is remembered of pictures. No torch.

A sequence that starts from the target's prefix cache starts with what the draft has of the same tokens. Since
pictures may be compressed, that need not end where a page does: the part of a page that is wanted is
borrowed, and copied before it is first read. Where the draft has less, the tokens between are skipped: it
works on less context, and its pages are not shared from there on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from engine.config import MAX_TREE_NODES
from engine.draft.kv import DraftKV
from engine.draft.slots import WHOLE, Block, SlotMap, Sources, View, draft_root
from engine.pages import PagePool, PageTable
from engine.sequence import Sequence

MAX_REMEMBERED = 4096
"""Pictures whose branch is remembered."""


def spare_pages(max_num_seqs: int, page_size: int) -> int:
    """How many pages more than the target a draft needs, so that it has one wherever the target has: for each
    sequence a tree, the pages that it begins and ends within, and one to copy from.
    """
    return max_num_seqs * (-(-MAX_TREE_NODES // page_size) + 3)


def keep_all(tag: str, view: View) -> int:
    """Without a compressor."""
    assert tag == WHOLE
    return view.image.num_tokens


@dataclass(slots=True)
class _Remembered:
    """``chosen``: by the gate; ``stored``: the last branch that slots were made with. ``sources``: of the
    branches that slots were made with, less the one that keeps everything.
    """

    chosen: str | None = None
    stored: str | None = None
    sources: dict[str, Sources] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class _Found:
    """``part``: the page, if any, that begins with the last of the ``num_slots`` slots. ``complete``: nothing
    is missing.
    """

    slots: SlotMap
    pages: list[int]
    part: list[int]
    num_slots: int
    complete: bool


@dataclass(slots=True)
class PictureCounts:
    """Pictures that the draft took in: their visual tokens, what was kept of them, how often each branch.
    ``slot_bytes``: of one slot's keys and values.
    """

    slot_bytes: int = 0
    num_visual: int = 0
    num_kept: int = 0
    by_branch: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_saved(self) -> int:
        return (self.num_visual - self.num_kept) * self.slot_bytes


class DraftPages:
    """Pages of a draft with KV, and how a sequence starts in them.

    ``num_kept``: visual tokens that a branch keeps of a picture. ``version``: of all that makes slots of
    tokens.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        *,
        num_kept: Callable[[str, View], int] = keep_all,
        version: bytes = b"",
        slot_bytes: int = 0,
    ) -> None:
        self.pool, self.page_size = pool, page_size
        self.counts = PictureCounts(slot_bytes)
        self._num_kept, self._version = num_kept, version
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()  # last used last

    def open(self, sequence: Sequence) -> None:
        """Begin the draft of a sequence that starts with ``num_computed`` tokens from the target's prefix
        cache.

        Features of those tokens are not to be had, so a picture among them is seen as somebody's draft has
        seen it, or not at all.
        """
        assert len(sequence.views) == len(sequence.images), "pictures would pass for text"
        hit = [view for view in sequence.views if view.image.start < sequence.num_computed]
        known = [self._remembered.get(view.key, _Remembered()) for view in hit]
        asked = [view.tag or memory.chosen for view, memory in zip(hit, known, strict=True)]
        found = self._find(sequence, hit, asked)
        stored = [memory.stored for memory in known]
        if not found.complete and stored != asked:
            other = self._find(sequence, hit, stored)
            found = other if other.num_slots > found.num_slots else found
        draft = self._begin(found, sequence.num_computed)
        draft.undecided = sequence.views[len(hit) :]
        sequence.draft, sequence.draft_slots = draft, draft.slots
        self.decide(sequence)

    def decide(self, sequence: Sequence, chosen: Seq[str] = ()) -> None:
        """Fix the branches of ``undecided`` pictures, in order and as far as they are known: asked for, or
        chosen by the gate before, or now: ``chosen``, one for each of them.
        """
        draft, choices = sequence.draft, iter(chosen)
        assert draft is not None
        while draft.undecided:
            view, choice = draft.undecided[0], next(choices, None)
            tag = view.tag
            if tag is None:
                tag = self._remembered.get(view.key, _Remembered()).chosen or choice
                if tag is None:
                    return
                self._memory(view.key).chosen = tag
            self._add(draft.slots, view, sequence.token_ids, tag)
            del draft.undecided[0]

    def took_in(self, block: Block) -> None:
        """The slots of a picture were made."""
        assert block.tag is not None
        memory = self._memory(block.view.key)
        memory.stored = block.tag
        if block.sources is not None:
            memory.sources[block.tag] = block.sources
        self.counts.num_visual += block.view.image.num_tokens
        self.counts.num_kept += block.num_kept
        self.counts.by_branch[block.tag] = self.counts.by_branch.get(block.tag, 0) + 1

    def check(self, drafts: Iterable[DraftKV]) -> None:
        """Assert the integrity of the pool, whose pages these hold."""
        self.pool.check(table for draft in drafts for table in (draft.table, draft.loan))

    def _find(self, sequence: Sequence, views: Seq[View], tags: Seq[str | None]) -> _Found:
        """What there is of the computed tokens if these pictures among them went through these branches."""
        token_ids, num_computed = sequence.token_ids, sequence.num_computed
        slots = SlotMap(draft_root(sequence.root, self._version), self.page_size)
        for view, tag in zip(views, tags, strict=True):
            self._add(slots, view, token_ids, tag)
        num_slots = slots.slot_of(slots.behind_cut(num_computed))
        missing = next((block.first_slot for block in slots.blocks if block.tag is None), num_slots)
        slots.extend_hashes(token_ids, missing)
        pages = self.pool.lookup(slots.hashes)
        part: list[int] = []
        if missing == num_slots and len(pages) == len(slots.hashes) and num_slots % self.page_size:
            part = self.pool.lookup([slots.part_hash(token_ids, num_slots)])
        in_place = num_slots if part else len(pages) * self.page_size
        if in_place == num_slots and None not in tags:
            return _Found(slots, pages, part, num_slots, complete=True)
        lost = [None if b.is_cut and b.end_slot > in_place else b.tag for b in slots.blocks]
        without = SlotMap(slots.root, self.page_size)
        for view, tag in zip(views, lost, strict=True):
            self._add(without, view, token_ids, tag)
        return _Found(without, pages, [], in_place, complete=False)

    def _add(self, slots: SlotMap, view: View, token_ids: Seq[int], tag: str | None) -> None:
        if tag is None:
            slots.add(view, token_ids, tag)
        else:
            sources = self._remembered.get(view.key, _Remembered()).sources.get(tag)
            slots.add(view, token_ids, tag, self._num_kept(tag, view), sources)

    def _begin(self, found: _Found, num_computed: int) -> DraftKV:
        draft = DraftKV(
            PageTable(self.pool, self.page_size),
            found.slots,
            PageTable(self.pool, self.page_size),
            num_seen=found.slots.behind_cut(num_computed),
            num_slots=found.num_slots,
            num_marked=num_computed // self.page_size,
            aligned=found.complete,
        )
        draft.table.adopt(found.pages)
        draft.loan.adopt(found.part)
        return draft

    def _memory(self, key: bytes) -> _Remembered:
        """To write to."""
        memory = self._remembered.setdefault(key, _Remembered())
        self._remembered.move_to_end(key)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return memory
