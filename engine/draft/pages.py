"""The draft's page pool: how sequences start from cached pages, and the record of past pictures. No torch.

A sequence that starts from the target's prefix cache starts with the draft's cached KV of the same tokens.
Since pictures may be compressed, that KV need not end at a page boundary: the needed part of a page is
borrowed, and copied before it is first read. If the draft has less KV, the tokens in between are skipped: the
draft works with less context, and its pages are not shared from there on.
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
"""Maximum number of pictures whose branches are remembered."""


def spare_pages(max_num_seqs: int, page_size: int) -> int:
    """Return how many more pages than the target a draft needs to have one whenever the target does.

    For each sequence these are the pages of a tree, the partial pages at its start and end, and one to copy
    from.
    """
    return max_num_seqs * (-(-MAX_TREE_NODES // page_size) + 3)


def keep_all(tag: str, view: View) -> int:
    """Return the number of visual tokens kept without a compressor: all of them."""
    assert tag == WHOLE
    return view.image.num_tokens


@dataclass(slots=True)
class _Remembered:
    """The record of a picture, by tag of the branch.

    ``chosen``: the branch chosen by the gate. ``stored``: the branch last used to make slots. ``sources``:
    the sources of all branches used to make slots, except the one that keeps everything.
    """

    chosen: str | None = None
    stored: str | None = None
    sources: dict[str, Sources] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class _Found:
    """The cached KV found for a sequence.

    ``part``: the page, if any, whose first slots are the last, partial page of the ``num_slots`` slots.
    ``complete``: nothing is missing.
    """

    slots: SlotMap
    pages: list[int]
    part: list[int]
    num_slots: int
    complete: bool


@dataclass(slots=True)
class PictureCounts:
    """Counts of the pictures that the draft has processed: visual tokens, kept tokens, uses of each branch.

    ``slot_bytes``: the size of the keys and values of one slot.
    """

    slot_bytes: int = 0
    num_visual: int = 0
    num_kept: int = 0
    by_branch: dict[str, int] = field(default_factory=dict)

    @property
    def bytes_saved(self) -> int:
        return (self.num_visual - self.num_kept) * self.slot_bytes


class DraftPages:
    """The pages of a draft with a KV cache.

    ``num_kept`` returns how many visual tokens of a picture a branch keeps. ``version`` identifies everything
    that determines the contents of slots.
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
        """Start the draft of a sequence whose first ``num_computed`` tokens come from the prefix cache.

        The features of those tokens are not available, so the draft sees a picture among them as it was
        stored for an earlier sequence, or not at all.
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
        """Fix the branches of the ``undecided`` pictures, in order and as far as they are known.

        A branch was requested, or the gate chose it for the same picture earlier, or it is given by
        ``chosen``, which has one entry per picture.
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
        """Record that the slots of a picture have been computed."""
        assert block.tag is not None
        memory = self._memory(block.view.key)
        memory.stored = block.tag
        if block.sources is not None:
            memory.sources[block.tag] = block.sources
        self.counts.num_visual += block.view.image.num_tokens
        self.counts.num_kept += block.num_kept
        self.counts.by_branch[block.tag] = self.counts.by_branch.get(block.tag, 0) + 1

    def check(self, drafts: Iterable[DraftKV]) -> None:
        """Assert that the pool is consistent with the pages that ``drafts`` hold."""
        self.pool.check(table for draft in drafts for table in (draft.table, draft.loan))

    def _find(self, sequence: Sequence, views: Seq[View], tags: Seq[str | None]) -> _Found:
        """Find the cached KV of the computed tokens if their pictures went through the branches ``tags``."""
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
        """Return the record of a picture for writing, creating it if necessary."""
        memory = self._remembered.setdefault(key, _Remembered())
        self._remembered.move_to_end(key)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return memory
