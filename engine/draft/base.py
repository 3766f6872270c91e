"""What proposes trees: the seam between the step loop and any kind of draft."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from engine.draft.candidates import Candidates
from engine.draft.compression import Compression
from engine.draft.ngram import NgramDrafter
from engine.draft.pages import DraftPages
from engine.plan import Span
from engine.runner import Outcome
from engine.sequence import Sequence


class Drafter(Protocol):
    """A draft may be wrong in any way and changes no output. ``pages``: of a draft that keeps KV;
    ``compression``: what becomes of pictures in one that sees them.

    Where memory runs out it raises, and serves on: less the sequences of which it then lacks something.
    """

    kind: str
    pages: DraftPages | None
    compression: Compression | None

    @property
    def lookup(self) -> NgramSource | None:
        """Looks up beside it, to be merged into what it proposes."""

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        """Take what it needs of a step's outcome, before tokens are committed."""

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        """Whether it can propose for this sequence now."""

    def num_behind(self, sequence: Sequence) -> int:
        """Tokens of ``sequence`` that it has not seen and will look at before it proposes."""

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        """Candidates at most ``num_steps`` deep and ``topk`` wide within each sequence's limits, which its
        length limit cuts, too.
        """

    def follow(self, running: Seq[Sequence]) -> None:
        """Look at what piles up for sequences that no tree is grown for yet: long prompts."""

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended; its ``finish_reason`` says how."""


class NgramSource:
    """Look-up in prompt, output and recent outputs, as a ``Drafter``."""

    kind = "ngram"
    pages: DraftPages | None = None
    compression: Compression | None = None
    lookup = None

    def __init__(self, never: frozenset[int]) -> None:
        self._ngrams = NgramDrafter(never=never)
        self._known: dict[str, int] = {}  # tokens of each request that were looked at

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        pass  # it reads the tokens themselves

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:  # noqa: ARG002 (always)
        return True

    def num_behind(self, sequence: Sequence) -> int:  # noqa: ARG002 (looking up costs no forward)
        return 0

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        for sequence in sequences:
            self._read(sequence)
        limits = [sequence.tree_limits(num_steps, topk) for sequence in sequences]
        return self._ngrams.propose([sequence.request_id for sequence in sequences], limits)

    def follow(self, running: Seq[Sequence]) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        if self._known.pop(sequence.request_id, None) is not None:
            # An answer that was broken off is no worse a source than one that ended.
            self._ngrams.end(sequence.request_id, remember=True)

    def _read(self, sequence: Sequence) -> None:
        known = self._known.get(sequence.request_id)
        if known is None:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            # A trace lists what was proposed, which must not be words of somebody else's answer.
            self._ngrams.begin(sequence.request_id, prompt, sequence.salt, only_own=sequence.trace)
            known = self._known[sequence.request_id] = sequence.num_prompt_tokens
        self._ngrams.extend(sequence.request_id, sequence.token_ids[known:])
        self._known[sequence.request_id] = sequence.num_tokens
