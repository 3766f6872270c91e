"""The step loop's interface to speculation: trees before a step, learning after it. No model code.

In each step, ``draft`` decides how deep to draft and for which sequences, lets the drafter propose and picks
what is worth verifying; ``keep`` passes the step's outcome to the drafter; ``count`` records each verified
tree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from engine.config import NO_SPECULATION, TreeLimits
from engine.draft.base import Drafter
from engine.draft.candidates import Candidates, DraftTree, best_first, pick
from engine.draft.merge import merge
from engine.grammar.tree import prune
from engine.messages import TracedRound
from engine.plan import Span
from engine.runner import Outcome, is_out_of_memory
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.speculation.budget import SpeculationBudget
from engine.verify import Walk

log = logging.getLogger(__name__)

_QUIET_SECONDS = 60.0
_WATCHED_ROUNDS = 500
_SUSPICIOUS = 0.05  # accepted drafts per round: fewer indicate a wiring bug or the wrong draft


class Speculator:
    """Holds the drafter, its budget and the counters. Without a drafter nothing is ever drafted.

    If ``budget`` is ``None``, every round is as deep and every tree as large as the limits allow.
    """

    def __init__(
        self, drafter: Drafter | None, limits: TreeLimits, budget: SpeculationBudget | None = None
    ) -> None:
        self.drafter = drafter
        self.limits = limits if drafter is not None else NO_SPECULATION
        self.num_rounds = 0
        self.num_drafted = 0
        self.accepted_per_depth: list[int] = []
        self.draft_seconds = 0.0
        self.has_failed = False
        self._budget = budget
        self._quiet_until = 0.0  # no further warnings about memory until then
        self._watched = (0, 0)  # rounds and accepted drafts at the watchdog's last check

    def draft(self, scheduler: Scheduler) -> dict[str, DraftTree]:
        """Return the trees for the next step by request id; none where plain decoding is faster."""
        if self.drafter is None or not scheduler.running:
            return {}
        started = time.monotonic()
        try:
            return self._draft(self.drafter, scheduler)
        except Exception as error:  # a broken draft must not stop the answers
            self._give_up(error)
            return {}
        finally:
            self.draft_seconds += time.monotonic() - started

    def keep(self, spans: list[Span], outcome: Outcome) -> None:
        """Pass a step's outcome to the drafter, before its tokens are committed."""
        if self.drafter is not None:
            try:
                self.drafter.keep(spans, outcome)
            except Exception as error:
                self._give_up(error)

    def count(self, span: Span, walked: Walk, num_taken: int) -> TracedRound:
        """Record a committed tree, of which ``num_taken`` tokens became output."""
        assert span.tree is not None
        num_accepted = min(len(walked.path), num_taken)
        span.sequence.count_round(len(span.tree), num_accepted, num_taken)
        self.num_rounds += 1
        self.num_drafted += len(span.tree)
        self.accepted_per_depth.extend([0] * (num_accepted - len(self.accepted_per_depth)))
        for depth in range(num_accepted):
            self.accepted_per_depth[depth] += 1
        if self._budget is not None:
            self._budget.observe(span.sequence.request_id, span.tree, walked.path)
        self._watch()
        return TracedRound(
            token_ids=span.tree.token_ids.tolist(),
            parents=span.tree.parents.tolist(),
            accepted=walked.path,  # the whole walk, including nodes after a stop token
            bonus_token_id=walked.token_ids[-1],
        )

    def learn_costs(
        self, rows: int, forward_seconds: float, host_seconds: float, *, speculating: bool
    ) -> None:
        """Refine the cost of a decoding step.

        ``host_seconds``: time spent neither in the target's forward pass nor in drafting. Must not be called
        for steps with prompts, whose rows have a different cost.
        """
        if self._budget is not None:
            self._budget.observe_forward(rows, forward_seconds)
            self._budget.observe_host(host_seconds, speculating=speculating)

    def forget(self, sequence: Sequence) -> None:
        """Drop the state of a sequence that has ended."""
        if self.drafter is not None:
            self.drafter.forget(sequence)
        if self._budget is not None:
            self._budget.forget(sequence.request_id)

    def _draft(self, drafter: Drafter, scheduler: Scheduler) -> dict[str, DraftTree]:
        drafter.follow(scheduler.running)
        num_steps, topk = self.limits.num_steps, self.limits.topk
        sequences = [
            s
            for s in scheduler.growing
            if s.can_draft and s.limits.num_steps and s.num_left > 1 and drafter.ready(s, num_steps, topk)
        ]
        if not sequences:
            return {}
        if self._budget is None:
            candidates = _constrained(drafter.propose(sequences, num_steps, topk), sequences)
            chosen = _best(candidates, [s.limits.num_draft_tokens for s in sequences])
        else:
            proposed = self._within_budget(self._budget, drafter, scheduler, sequences)
            if proposed is None:
                return {}
            candidates, chosen = proposed
        trees = pick(candidates, chosen)
        return {s.request_id: tree for s, tree in zip(sequences, trees, strict=True) if tree is not None}

    def _within_budget(
        self, budget: SpeculationBudget, drafter: Drafter, scheduler: Scheduler, sequences: list[Sequence]
    ) -> tuple[Candidates, npt.NDArray[np.bool_]] | None:
        """Choose what to verify for the most tokens per second of the batch; ``None`` for plain decoding."""
        started = time.monotonic()
        num_plain = len(scheduler.growing) - len(sequences)
        plan = budget.plan(
            [s.request_id for s in sequences],
            [s.tree_limits(self.limits.num_steps, self.limits.topk) for s in sequences],
            behind=[max(1, drafter.num_behind(sequence)) for sequence in sequences],
            max_rows=scheduler.limits.max_num_batched_tokens,
            other_rows=num_plain + scheduler.prompt_rows,
            other_tokens=num_plain,
        )
        if not plan.levels:
            return None
        drafting = plan.levels_each > 0  # only one sequence in a trial
        served = [sequence for sequence, own in zip(sequences, drafting, strict=True) if own]
        candidates = drafter.propose(served, plan.levels, self.limits.topk)
        if drafter.lookup is not None:
            found = drafter.lookup.propose(served, self.limits.num_steps, self.limits.topk)
            candidates = merge(candidates, found, budget.translate)
        candidates = _constrained(candidates, served)
        if len(served) < len(sequences):
            candidates = candidates.spread(drafting.tolist())
        chosen = budget.choose(plan, candidates)
        budget.observe_draft(plan, time.monotonic() - started)
        return candidates, chosen

    def _give_up(self, error: Exception) -> None:
        """Handle an error of the drafter: stop drafting for good, unless memory ran out.

        In that case the drafter has already cleaned up, and only this step goes without drafts.
        """
        if not is_out_of_memory(error):
            log.exception("drafting failed; this engine continues without speculation until it is restarted")
            self.drafter, self.limits, self.has_failed = None, NO_SPECULATION, True
        elif time.monotonic() >= self._quiet_until:
            log.warning("not enough memory to draft; some answers continue without drafts: %s", error)
            self._quiet_until = time.monotonic() + _QUIET_SECONDS

    def _watch(self) -> None:
        """Warn if almost nothing is accepted, which indicates a wiring bug rather than a weak draft."""
        rounds, accepted = self._watched
        if self.drafter is None or self.num_rounds - rounds < _WATCHED_ROUNDS:
            return
        total = sum(self.accepted_per_depth)
        rate = (total - accepted) / (self.num_rounds - rounds)
        self._watched = (self.num_rounds, total)
        if self.drafter.kind != "ngram" and rate < _SUSPICIOUS:
            log.warning(
                "the last %d trees gained %.3f tokens each: was this draft trained for this model?",
                _WATCHED_ROUNDS,
                rate,
            )


def _constrained(candidates: Candidates, sequences: Seq[Sequence]) -> Candidates:
    """Remove the candidates that grammars forbid, which would never be accepted."""
    if all(sequence.grammar is None for sequence in sequences):
        return candidates
    return prune(candidates, [sequence.grammar for sequence in sequences])


def _best(candidates: Candidates, caps: Seq[int]) -> npt.NDArray[np.bool_]:
    """Choose each sequence's best candidates, as many as its cap."""
    order = best_first(candidates.scores, max(caps))
    taken = np.isfinite(np.take_along_axis(candidates.scores, order, axis=1))
    taken &= np.arange(order.shape[1]) < np.asarray(caps)[:, None]
    chosen = np.zeros(candidates.scores.shape, np.bool_)
    np.put_along_axis(chosen, order, taken, axis=1)
    return chosen
