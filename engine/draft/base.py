"""The drafter interface between the step loop and any kind of draft."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from engine.draft.branches import Branches
from engine.draft.candidates import Candidates
from engine.draft.ngram_drafter import NgramDrafter
from engine.draft.pages import DraftPages
from engine.plan import Span
from engine.runner import Outcome
from engine.sequence import Sequence


class Drafter(Protocol):
    """Proposes candidate trees. A draft may be wrong in any way without changing the output.

    ``pages``: the page pool of a draft with a KV cache. ``branches``: the compressors of a draft
    that sees pictures.

    If memory runs out, a drafter raises but stays usable; it stops drafting for the sequences whose state it
    lost.
    """

    kind: str
    pages: DraftPages | None
    branches: Branches | None

    @property
    def lookup(self) -> NgramDrafter | None:
        """The n-gram drafter whose candidates are to be merged with those of this drafter, if any."""

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        """Keep what the draft needs of a step's outcome, before tokens are committed."""

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        """Whether the drafter can propose for this sequence now."""

    def num_behind(self, sequence: Sequence) -> int:
        """Return how many tokens of ``sequence`` the draft must process before it can propose."""

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        """Propose candidates at most ``num_steps`` deep and ``topk`` wide, within each sequence's limits.

        A sequence's length limit reduces its depth, too.
        """

    def follow(self, running: Seq[Sequence]) -> None:
        """Process what accumulates for sequences that get no tree: long prompts, and answers that are decoded
        plainly for long.
        """

    def forget(self, sequence: Sequence) -> None:
        """Drop the state of a sequence that has ended; its ``finish_reason`` says how."""
