"""What the draft has seen of one sequence, and where its keys and values are. No torch.

Where nothing was skipped, slots are those of :mod:`engine.draft.slots`, and pages are shared under hashes of
their own. How a sequence starts from cached pages is told in :mod:`engine.draft.pages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.draft.slots import Block, SlotMap, View
from engine.pages import PageTable


@dataclass(slots=True, eq=False, weakref_slot=True)
class DraftKV:
    """The first ``num_seen`` tokens are in ``num_slots`` slots of the draft's KV, less the skipped ones.

    ``undecided``: pictures whose branch the gate is to choose, or that are behind one. ``loan``: the page
    that holds the last slots, where they are another's, until they are copied. ``aligned``: nothing was
    skipped. ``given_up``: features of tokens that it has not seen were dropped, so it cannot go on.
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
        """Up to which of ``num_tokens`` tokens it may see: a compressed picture is not cut, and one that is
        not decided about is not begun.
        """
        if self.undecided:
            num_tokens = min(num_tokens, self.undecided[0].image.start)
        return max(self.num_seen, self.slots.before_cut(num_tokens))

    def slots_to(self, token: int) -> int:
        """How many slots the tokens from the seen ones to ``token`` will take."""
        return self.slots.slot_of(token) - self.slots.slot_of(self.num_seen)

    def blocks_to(self, token: int) -> list[Block]:
        """Pictures that begin among the tokens from the seen ones to ``token``."""
        blocks = self.slots.blocks
        if not blocks or blocks[-1].start < self.num_seen:  # most rounds are behind the last picture
            return []
        return [block for block in blocks if self.num_seen <= block.start < token]

    def saw(self, token: int, token_ids: Sequence[int], *, caching: bool) -> None:
        """Account for the tokens up to ``token``, which are in place; share the pages that they fill."""
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
        """Name the slots where a page of the target ends: who starts there will look for them."""
        page_size = self.table.page_size
        while (end := self.slots.behind_cut((self.num_marked + 1) * page_size)) <= self.num_seen:
            self.num_marked += 1
            if (slot := self.slots.slot_of(end)) % page_size:
                name = self.slots.part_hash(token_ids, slot)
                self.table.pool.publish(self.table.pages[slot // page_size], name)
