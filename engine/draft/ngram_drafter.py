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
    """N-gram look-up in the prompt, the output and recent outputs, as a ``Drafter``.

    ``tokens_per_step``: the most tokens read in one step, at about a microsecond each; a sequence with more
    to read gets no candidates until that is done. ``prompt_tokens``: only the end of a longer prompt is read,
    as recent text is repeated most. ``held_tokens``: once the prompts of all requests hold as many, further
    ones get an eighth of ``prompt_tokens``. Output has no such limit, as each of its tokens also takes KV,
    which is larger; the KV of a prompt may be shared by many requests.
    """

    kind = "ngram"
    pages: DraftPages | None = None
    branches: Branches | None = None
    lookup = None

    def __init__(
        self,
        never: frozenset[int],
        *,
        tokens_per_step: int = 1 << 13,
        prompt_tokens: int = 1 << 14,
        held_tokens: int = 1 << 18,
    ) -> None:
        self._ngrams = NgramLookup(never=never)
        self._tokens_per_step = tokens_per_step
        self._prompt_tokens = prompt_tokens
        self._held_tokens = held_tokens
        self._skipped: dict[str, int] = {}  # number of first tokens that are never read, by request

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        pass  # it reads the tokens themselves

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:  # noqa: ARG002 (always)
        return True

    def num_behind(self, sequence: Sequence) -> int:  # noqa: ARG002 (looking up costs no forward)
        return 0

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        for sequence in sequences:
            if sequence.request_id not in self._skipped:
                self._begin(sequence)
        room = self._tokens_per_step
        for sequence in sorted(sequences, key=self._num_unread):  # a long prompt must not hold up the others
            room -= self._read(sequence, room)
        complete = [not self._num_unread(sequence) for sequence in sequences]
        served = [sequence for sequence, is_complete in zip(sequences, complete, strict=True) if is_complete]
        limits = [sequence.tree_limits(num_steps, topk) for sequence in served]
        candidates = self._ngrams.propose([sequence.request_id for sequence in served], limits)
        return candidates if len(served) == len(sequences) else candidates.spread(complete)

    def follow(self, running: Seq[Sequence]) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        if self._skipped.pop(sequence.request_id, None) is not None:
            # An aborted answer is as good a source as a complete one.
            self._ngrams.end(sequence.request_id, remember=True)

    def _begin(self, sequence: Sequence) -> None:
        free = max(self._held_tokens - self._ngrams.num_prompt_tokens, self._prompt_tokens // 8)
        held = min(sequence.num_prompt_tokens, self._prompt_tokens, free)
        # A trace shows what was proposed, which must not be text of another request's answer.
        self._ngrams.begin(sequence.request_id, num_prompt=held, salt=sequence.salt, only_own=sequence.trace)
        self._skipped[sequence.request_id] = sequence.num_prompt_tokens - held

    def _num_read(self, sequence: Sequence) -> int:
        return self._skipped[sequence.request_id] + self._ngrams.num_tokens(sequence.request_id)

    def _num_unread(self, sequence: Sequence) -> int:
        return sequence.num_tokens - self._num_read(sequence)

    def _read(self, sequence: Sequence, room: int) -> int:
        """Read at most ``room`` more tokens; return how many."""
        known = self._num_read(sequence)
        token_ids = sequence.token_ids[known : known + room]
        self._ngrams.extend(sequence.request_id, token_ids)
        return len(token_ids)
