"""The draft's KV state of one sequence: what it has seen and where its keys and values are. No torch.

If nothing was skipped, slots are laid out as in :mod:`engine.draft.slots`, and pages are shared under hashes
of their own. :mod:`engine.draft.pages` describes how a sequence starts from cached pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.draft.slots import Block, SlotMap, View
from engine.pages import PageTable


@dataclass(slots=True, eq=False, weakref_slot=True)
class DraftKV:
    """The first ``num_seen`` tokens, without skipped ones, take ``num_slots`` slots of the draft's KV.

    ``undecided``: pictures whose branch the gate is still to choose, or that follow such a picture. ``loan``:
    the page that holds the last slots if it belongs to another sequence, until they are copied. ``aligned``:
    nothing was skipped. ``given_up``: features of unseen tokens were dropped, so the draft cannot continue.
    """

    table: PageTable
    slots: SlotMap
    loan: PageTable
    undecided: list[View] = field(default_factory=list)
    num_seen: int = 0
    num_slots: int = 0
    num_marked: int = 0
    aligned: bool = True
    given_up: bool = False

    def reach(self, num_tokens: int) -> int:
        """Return how many of ``num_tokens`` tokens the draft may see.

        It never splits a compressed picture and does not start one whose branch is undecided.
        """
        if self.undecided:
            num_tokens = min(num_tokens, self.undecided[0].image.start)
        return max(self.num_seen, self.slots.before_cut(num_tokens))

    def slots_to(self, token: int) -> int:
        """Return how many slots the unseen tokens up to ``token`` will take."""
        return self.slots.slot_of(token) - self.slots.slot_of(self.num_seen)

    def blocks_to(self, token: int) -> list[Block]:
        """Return the pictures that begin among the unseen tokens up to ``token``."""
        blocks = self.slots.blocks
        if not blocks or blocks[-1].start < self.num_seen:  # most rounds are past the last picture
            return []
        return [block for block in blocks if self.num_seen <= block.start < token]

    def saw(self, token: int, token_ids: Sequence[int], *, caching: bool) -> None:
        """Record that the tokens up to ``token`` are in place, and publish the pages that they fill."""
        self.num_slots += self.slots_to(token)
        self.num_seen = token
        if caching and self.aligned:
            self.slots.extend_hashes(token_ids, self.num_slots)
            self.table.publish(self.slots.hashes, self.num_slots)
            self._mark(token_ids)

    def release(self) -> None:
        self.table.release()
        self.loan.release()

    def _mark(self, token_ids: Sequence[int]) -> None:
        """Publish the slots where a page of the target ends: sequences that start there look for them."""
        page_size = self.table.page_size
        while (end := self.slots.behind_cut((self.num_marked + 1) * page_size)) <= self.num_seen:
            self.num_marked += 1
            if (slot := self.slots.slot_of(end)) % page_size:
                name = self.slots.part_hash(token_ids, slot)
                self.table.pool.publish(self.table.pages[slot // page_size], name)
