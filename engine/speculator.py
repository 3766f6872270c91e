"""Speculation as the step loop sees it: trees before a step, learning after it. No model code.

Each step: ``draft`` decides how deep to draft and for whom, lets the drafter propose and picks what is worth
verifying; ``keep`` hands the step's outcome to the drafter; ``count`` accounts for each verified tree.
"""

from __future__ import annotations

import logging
import time

import numpy as np

from engine.candidates import DraftTree, pick
from engine.config import NO_SPECULATION, SpeculativeConfig
from engine.drafter import Drafter
from engine.messages import TracedRound
from engine.runner import Outcome
from engine.scheduler import Scheduler, Span
from engine.sequence import Sequence
from engine.verify import Walk

log = logging.getLogger(__name__)


class Speculator:
    """Holds the drafter and the counters. Without a drafter nothing is ever drafted."""

    def __init__(self, drafter: Drafter | None, limits: SpeculativeConfig) -> None:
        self.drafter = drafter
        self.limits = limits if drafter is not None else NO_SPECULATION
        self.num_rounds = 0
        self.num_drafted = 0
        self.accepted_per_depth: list[int] = []
        self.draft_seconds = 0.0

    def draft(self, scheduler: Scheduler) -> dict[str, DraftTree]:
        """Trees by request id for the step to come; none where plain decoding is faster."""
        if self.drafter is None or not scheduler.running:
            return {}
        started = time.monotonic()
        trees = self._draft(self.drafter, scheduler)
        self.draft_seconds += time.monotonic() - started
        return trees

    def keep(self, spans: list[Span], outcome: Outcome) -> None:
        if self.drafter is not None:
            self.drafter.keep(spans, outcome)

    def count(self, span: Span, walked: Walk, num_taken: int) -> TracedRound:
        """Account for a committed tree, of which ``num_taken`` tokens became output."""
        assert span.tree is not None
        num_accepted = min(len(walked.path), num_taken)
        span.sequence.count_round(len(span.tree), num_accepted, num_taken)
        self.num_rounds += 1
        self.num_drafted += len(span.tree)
        self.accepted_per_depth.extend([0] * (num_accepted - len(self.accepted_per_depth)))
        for depth in range(num_accepted):
            self.accepted_per_depth[depth] += 1
        return TracedRound(
            token_ids=span.tree.token_ids.tolist(),
            parents=span.tree.parents.tolist(),
            accepted=walked.path,
            bonus_token_id=walked.token_ids[-1],
        )

    def forget(self, sequence: Sequence) -> None:
        if self.drafter is not None:
            self.drafter.forget(sequence)

    def _draft(self, drafter: Drafter, scheduler: Scheduler) -> dict[str, DraftTree]:
        num_steps, topk = self.limits.num_steps, self.limits.topk
        drafter.follow(scheduler.running)
        sequences = [
            s
            for s in scheduler.running
            if s.can_draft and s.limits.num_steps and s.num_left > 1 and drafter.ready(s, num_steps, topk)
        ]
        if not sequences or not num_steps:
            return {}
        candidates = drafter.propose(sequences, num_steps, topk)
        chosen = np.isfinite(candidates.scores)
        chosen[:, self.limits.num_draft_tokens :] = False
        trees = pick(candidates, chosen)
        return {s.request_id: tree for s, tree in zip(sequences, trees, strict=True) if tree is not None}
