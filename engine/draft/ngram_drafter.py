"""The n-gram look-up as a drafter."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from engine.draft.branches import Branches
from engine.draft.candidates import Candidates
from engine.draft.ngram import NgramLookup
from engine.draft.pages import DraftPages
from engine.plan import Span
from engine.runner import Outcome
from engine.sequence import Sequence


class NgramDrafter:
    """N-gram look-up in the prompt, the output and recent outputs, as a ``Drafter``."""

    kind = "ngram"
    pages: DraftPages | None = None
    branches: Branches | None = None
    lookup = None

    def __init__(self, never: frozenset[int]) -> None:
        self._ngrams = NgramLookup(never=never)
        self._known: dict[str, int] = {}  # number of tokens read, by request

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
            # An aborted answer is as good a source as a complete one.
            self._ngrams.end(sequence.request_id, remember=True)

    def _read(self, sequence: Sequence) -> None:
        known = self._known.get(sequence.request_id)
        if known is None:
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            # A trace shows what was proposed, which must not be text of another request's answer.
            self._ngrams.begin(sequence.request_id, prompt, sequence.salt, only_own=sequence.trace)
            known = self._known[sequence.request_id] = sequence.num_prompt_tokens
        self._ngrams.extend(sequence.request_id, sequence.token_ids[known:])
        self._known[sequence.request_id] = sequence.num_tokens
