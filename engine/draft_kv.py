"""What the draft has seen of one sequence, and where its keys and values are. No torch.

Slot ``i`` of the draft holds (feature of token ``i - 1``, embedding of token ``i``), so it depends on tokens
up to ``i`` only and its full pages are shared under the same hashes as the target's. Where a prefix hit of
the target reaches further than the draft's, the tokens between are skipped: the draft works on less
context, slots and tokens are no longer aligned, and its pages are not shared from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.pages import PagePool, PageTable


@dataclass(slots=True, eq=False, weakref_slot=True)
class DraftKV:
    """The first ``num_seen`` tokens are in ``num_slots`` slots of the draft's KV, less the skipped ones.

    ``given_up``: features of tokens that it has not seen were dropped, so it cannot go on.
    """

    table: PageTable
    num_seen: int = 0
    num_slots: int = 0
    given_up: bool = False

    @classmethod
    def after(cls, pool: PagePool, page_size: int, hashes: Sequence[bytes], num_computed: int) -> DraftKV:
        """For a sequence that starts with ``num_computed`` tokens from the target's prefix cache; ``hashes``
        are those of its pages.
        """
        draft = cls(PageTable(pool, page_size))
        draft.table.adopt(pool.lookup(hashes[: num_computed // page_size]))
        draft.num_seen, draft.num_slots = num_computed, len(draft.table.pages) * page_size
        return draft

    @property
    def aligned(self) -> bool:
        """Whether slot ``i`` holds token ``i``."""
        return self.num_seen == self.num_slots

    def saw(self, num_tokens: int, hashes: Sequence[bytes], *, caching: bool) -> None:
        """Account for the next ``num_tokens`` tokens, which are in place; share the pages that they fill."""
        self.num_seen += num_tokens
        self.num_slots += num_tokens
        if caching and self.aligned:
            self.table.publish(hashes, min(self.num_slots, len(hashes) * self.table.page_size))
