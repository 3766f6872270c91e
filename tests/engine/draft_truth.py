"""What every slot of a draft must hold, worked out from the tokens alone, and a writer that keeps to it."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from typing import Any

from engine.draft.kv import DraftKV
from engine.draft.pages import DraftPages
from engine.draft.slots import WHOLE, Block, View
from engine.sequence import Sequence

TAGS = (WHOLE, "text_only", "half", "one")


def num_kept(tag: str, view: View) -> int:
    whole = view.image.num_tokens
    return {WHOLE: whole, "text_only": 0, "half": -(-whole // 2), "one": 1}[tag]


def contents(states: Seq[int], blocks: Seq[Block], root: bytes) -> list[int]:
    """One number a slot, of all that it depends on. ``states``: of every token, of all that the target's KV
    depends on there.
    """
    slots: list[int] = []
    cut = {block.start: block for block in blocks if block.is_cut}
    token = 0
    while token < len(states):
        block = cut.get(token)
        if block is None:
            slots.append(hash((slots[-1] if slots else root, states[token])))
            token += 1
        else:
            before = (slots[-1] if slots else root, states[block.end - 1], block.tag)
            slots += [hash((before, number)) for number in range(block.num_slots)]
            token = block.end
    return slots


class DraftWriter:
    """Numbers instead of keys and values. ``shown``: to each draft, by its slots."""

    def __init__(self, pages: DraftPages, *, caching: bool) -> None:
        self.pages, self.caching = pages, caching
        self.kv: dict[int, Any] = {}
        self.shown: dict[DraftKV, list[Any]] = {}

    def look(self, sequence: Sequence, states: Seq[int], rng: random.Random, num_nodes: int) -> None:
        """See what was not seen and grow a tree behind it, if there are pages."""
        draft = sequence.draft
        assert draft is not None
        if draft.undecided and sequence.num_computed >= sequence.num_prompt_tokens:
            self.pages.decide(sequence, [rng.choice(TAGS) for _ in draft.undecided])
            assert not draft.undecided
        reach = sequence.draft_reach
        new = draft.slots_to(reach)
        if reach == draft.num_seen or not draft.table.can_reserve(draft.num_slots + new + num_nodes):
            return
        draft.table.reserve(draft.num_slots + new + num_nodes)
        size = draft.table.page_size
        slots = [page * size + offset for page in draft.table.pages for offset in range(size)]
        if draft.loan.pages:
            first = draft.num_slots // size * size
            for i in range(draft.num_slots % size):
                self.kv[slots[first + i]] = self.kv[draft.loan.pages[0] * size + i]
            draft.loan.release()
        truth = contents(states[:reach], draft.slots.blocks, sequence.root)
        held = [self.kv.get(slot) for slot in slots[: draft.num_slots]]
        # One that skipped tokens may begin with a part of a picture that it then goes without.
        shown = self.shown.setdefault(draft, truth[: draft.num_slots] if draft.aligned else held)
        assert held == shown, "the draft's KV is somebody else's"
        if draft.aligned:
            assert len(truth) == draft.num_slots + new
            shown += truth[draft.num_slots :]
        else:
            shown += [(sequence.request_id, draft.num_slots + i) for i in range(new)]
        for slot, state in zip(slots, [*shown, *(["a node"] * num_nodes)], strict=False):
            self.kv[slot] = state
        for block in draft.blocks_to(reach):
            self.pages.took_in(block)
        draft.saw(reach, sequence.token_ids, caching=self.caching)
        assert (draft.num_slots, draft.num_seen) == (len(shown), reach)
        draft.table.truncate(draft.num_slots)
