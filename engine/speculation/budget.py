"""Decides how much to speculate so that it rarely loses: measured costs against learned acceptance. No torch.

There are two decisions per step, both maximising the expected tokens per second of the whole batch: before
drafting, how many levels to draft (0 is plain decoding, without any draft work); after it, which candidates
to verify.

    budget = SpeculationBudget(target_costs, draft_costs, max_steps=config.num_steps)

    plan = budget.plan(request_ids, limits, behind=rows_to_catch_up, max_rows=rows_of_a_step)
    if plan.levels:
        candidates = ...                                # draft, sequence s plan.levels_each[s] levels deep
        trees = pick(candidates, budget.choose(plan, candidates))
        budget.observe_draft(plan, seconds)
    ...                                                 # the target's forward, then the walk
    budget.observe_forward(rows, seconds)
    budget.observe_host(seconds, speculating=plan.levels > 0)
    budget.observe(request_id, tree, accepted_nodes)    # for every tree that was verified
    budget.forget(request_id)                           # at its end

The gain of a round is the sum of its nodes' acceptance probabilities, since each accepted node is one more
token. What a round of L levels would yield is known from earlier rounds (``CandidateSpectrum``), so the first
decision compares the same sums as the second, for any number of sequences.

Tokens that the draft has not read yet (a prompt, plainly decoded tokens) are read only once, for all later
rounds, so a decision counts only a share of their cost.

An estimate that argues against drafting would never be tested again, so every ``explore_every`` decisions the
budget explores: one level if it would not draft, the full depth if it would draft a shallower one. If by its
costs not even a perfect draft would pay, it explores rarely: the costs may be those of a busy hour. After
explorations without success the interval grows up to fourfold; after a success the next ones follow sooner.
No exploration runs before the time it would lose is a small share of the time since the last one. Against the
estimates only one sequence explores: a new one, else the one the draft is least behind on. What it shows
holds for all, and catching up all of them would be expensive. While there is a new sequence, explorations
follow sooner. Decisions depend only on observations: there are no random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.config import TreeLimits
from engine.draft.candidates import Candidates, DraftTree, best_first
from engine.draft.merge import DRAFT, LOOKUP
from engine.speculation.acceptance import KNOTS, AcceptanceModel, CandidateSpectrum, knot_places
from engine.speculation.costs import CostTable, DraftCosts, HostCosts
from engine.speculation.nodes import MARGIN, choose_counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FREE = 0.01  # a draft that costs less than this share of a plain step is always used
FIRST_TREES = 4  # trees drafted before the estimates may decide against drafting …
FIRST_PLAIN = 2  # … and at most as many plain steps after them, to observe the host's cost without trees
PAYING_ROUNDS = 16  # rounds that share the cost of what the draft must read beyond one round's tokens
LOOK_SPEEDUP = 8  # factor by which it explores more often after a success, or for a new request
LOOK_COST = 0.05  # maximum share of all time for explorations against the estimates …
RARE_COST = 0.01  # … and for those when by its costs nothing could pay


@dataclass(slots=True, frozen=True)
class DraftPlan:
    """How deep to draft in this step, for S sequences, and what ``choose`` and ``observe_draft`` need.

    ``levels_each`` int64 ``[S]``: ``levels`` or the request's own limit. ``caps`` int64 ``[S]``: the most
    nodes of a tree. ``factors`` float64 ``[S]``: the requests' acceptance factors. ``behind`` int64 ``[S]``:
    rows that the draft must read. ``new`` bool ``[S]``: nothing has been drafted for the request yet.
    ``trial``: the estimates argue against drafting and are being tested. ``tokens``: the tokens that the step
    yields without drafts. ``rows``: its rows without drafts; there is ``room`` for this many more.
    ``draft_seconds``: the part of the drafting time that counts for this round.
    """

    levels: int
    trial: bool
    levels_each: Ints
    caps: Ints
    factors: Floats
    behind: Ints
    new: npt.NDArray[np.bool_]
    tokens: int
    rows: int
    room: int
    frontier_rows: int
    draft_seconds: float

    @property
    def extend_rows(self) -> int:
        """The number of rows that the draft reads in this round."""
        return int(self.behind[self.levels_each > 0].sum())


class SpeculationBudget:
    """Chooses depth and nodes for every step and learns from the results.

    The costs ``target`` and ``draft`` are refined in place. ``max_steps``: the maximum depth of any request.
    """

    def __init__(
        self, target: CostTable, draft: DraftCosts, *, max_steps: int, explore_every: int = 64
    ) -> None:
        self.target = target
        self.draft = draft
        self.acceptance = AcceptanceModel()
        self._lookup = AcceptanceModel()  # for look-up candidates merged with a draft's, by look-up scores
        self._spectrum = CandidateSpectrum(max_steps)
        self._explore_every = explore_every
        self._patience = explore_every  # decisions until the next exploration
        self._on_trial = False
        self._since_look = 0
        self._num_trees = self._num_plain = 0
        self.host = HostCosts()

    def plan(
        self,
        request_ids: Sequence[str],
        limits: Sequence[TreeLimits],
        *,
        behind: Sequence[int],
        max_rows: int,
        other_rows: int = 0,
        other_tokens: int = 0,
    ) -> DraftPlan:
        """Decide how deep to draft for these sequences, which decode one row each.

        ``behind``: rows that the draft must run for each sequence before it can propose (1 for look-up).
        ``other_rows`` run in the same forward pass (prompt chunks, sequences that may not speculate) and
        yield ``other_tokens``. ``max_rows`` limits the rows of the forward pass.
        """
        self.acceptance.age()
        self._lookup.age()
        self._spectrum.age()
        caps = np.array([limit.num_draft_tokens if limit.topk else 0 for limit in limits], np.int64)
        steps = np.minimum(np.array([limit.num_steps for limit in limits], np.int64), caps)
        rows = other_rows + len(request_ids)
        batch = DraftPlan(
            levels=0,
            trial=False,
            levels_each=steps,
            caps=caps,
            factors=np.array([self.acceptance.factor(name) for name in request_ids], np.float64),
            tokens=other_tokens + len(request_ids),
            rows=rows,
            behind=np.array(behind, np.int64),
            new=np.array([not self.acceptance.knows(name) for name in request_ids], np.bool_),
            room=max(0, max_rows - rows),
            frontier_rows=sum(limit.topk for limit in limits),
            draft_seconds=0.0,
        )
        levels, self._on_trial = self._levels(batch)
        if not levels:
            return replace(batch, levels_each=np.zeros_like(steps))
        if self._on_trial:
            one = _looking(batch)
            steps = np.where(np.arange(len(steps)) == one, steps, 0)
            batch = replace(batch, levels_each=steps, frontier_rows=limits[one].topk)
        return replace(
            batch,
            levels=levels,
            trial=self._on_trial,
            levels_each=np.minimum(steps, levels),
            draft_seconds=float(self._draft_seconds(batch, levels)[-1]),
        )

    def choose(self, plan: DraftPlan, candidates: Candidates) -> npt.NDArray[np.bool_]:
        """Choose the candidates to verify, ``[S, C]``; a candidate is only chosen together with its parent.

        Candidates deeper than their sequence may draft are left out. Raises ``ValueError`` if the candidates
        are not those of the plan's sequences.
        """
        if candidates.num_sequences != len(plan.caps):
            raise ValueError(f"candidates of {candidates.num_sequences} sequences, not {len(plan.caps)}")
        self._num_trees += candidates.num_sequences
        looked_up = _looked_up(candidates)
        # A batch is drafted to the depth of its deepest sequence. Look-up candidates do not depend on that.
        within = (candidates.depths <= plan.levels_each[:, None]) | looked_up
        scores = np.where(within, candidates.scores, np.float32(-np.inf))
        order = best_first(scores, int(plan.caps.max(initial=0)))
        scores = np.take_along_axis(scores, order, axis=1)
        below, share = knot_places(scores)
        real = np.isfinite(scores)
        depths = np.take_along_axis(np.where(looked_up, 1, candidates.depths), order, axis=1)
        self._spectrum.observe(depths[real], below[real], share[real], plan.levels_each)
        if plan.trial:  # trust the draft's own scores, whatever has been learned about them
            chances = np.exp(scores.astype(np.float64))
        else:
            chances = self.acceptance.calibrate_at(below, share) * plan.factors[:, None]
        counts = choose_counts(
            np.where(real, np.minimum(chances, 1.0), 0.0),
            plan.caps,
            self.target,
            tokens=plan.tokens,
            rows=plan.rows,
            room=plan.room,
            spent=plan.draft_seconds + self.host.plain,
            overhead=self.host.with_trees - self.host.plain,
            at_least=1 if plan.trial else 0,
        )
        chosen = np.zeros(candidates.scores.shape, np.bool_)
        np.put_along_axis(chosen, order, np.arange(order.shape[1]) < counts[:, None], axis=1)
        return chosen

    def translate(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Convert look-up scores to draft scores with the same acceptance probability."""
        chances = self._lookup.calibrate(scores)
        worth: npt.NDArray[np.float32] = np.interp(chances, self.acceptance.curve, KNOTS).astype(np.float32)
        return worth

    def observe(self, request_id: str, tree: DraftTree, accepted: Sequence[int]) -> None:
        """Record a verified tree and the indices of its accepted nodes, even if output ended among them."""
        flags = np.zeros(len(tree), np.bool_)
        flags[list(accepted)] = True
        drafted = tree.scores if tree.source_scores is None else tree.source_scores[:, DRAFT]
        own = np.isfinite(drafted)
        self.acceptance.observe(request_id, drafted[own], flags[own])
        if tree.source_scores is not None:
            found = np.isfinite(tree.source_scores[:, LOOKUP])
            self._lookup.observe(request_id, tree.source_scores[found, LOOKUP], flags[found])
        if self._on_trial and flags.any():
            self._patience = max(1, self._explore_every // LOOK_SPEEDUP)

    def observe_forward(self, rows: int, seconds: float) -> None:
        """Record that a forward pass of the target over ``rows`` rows took ``seconds``."""
        self.target.observe(rows, seconds)

    def observe_draft(self, plan: DraftPlan, seconds: float) -> None:
        """Record that drafting as planned, with at least one level, took ``seconds``."""
        self.draft.observe(plan.levels, plan.extend_rows, plan.frontier_rows, seconds)

    def observe_host(self, seconds: float, *, speculating: bool) -> None:
        """Record the seconds of a step that were neither the target's forward pass nor drafting."""
        self.host.observe(seconds, speculating=speculating)

    def forget(self, request_id: str) -> None:
        """Drop a request that has ended. Ids that never speculated are ignored."""
        self.acceptance.forget(request_id)
        self._lookup.forget(request_id)

    def _levels(self, batch: DraftPlan) -> tuple[int, bool]:
        """Return the levels to draft, and whether that is a trial against the estimates."""
        most = int(batch.levels_each.max(initial=0))
        if most == 0 or batch.room == 0:
            return 0, False
        draft_seconds = self._draft_seconds(batch, most)
        plain_seconds = self.target.seconds(batch.rows) + self.host.plain
        if draft_seconds[-1] <= FREE * plain_seconds:
            return most, False
        enough = MARGIN * batch.tokens / plain_seconds
        ceiling = self._rates_of_chains(batch, draft_seconds, 1.0)
        deepest = int(ceiling.argmax()) + 1 if ceiling.max() > enough else 0
        if not deepest:
            return self._rare_look(batch, plain_seconds)
        if self._num_trees < FIRST_TREES:
            return deepest, False
        if not self.host.knows_plain and self._num_plain < FIRST_PLAIN:
            self._num_plain += 1
            return 0, False
        expected, sure = self._expected_rates(batch, draft_seconds), float(self.acceptance.curve[-1])
        levels = int(expected.argmax()) + 1 if expected.max() > enough else 0
        patience: float = self._patience
        if levels:
            self._patience = patience = self._explore_every
        elif batch.new.any() and self._rates_of_chains(batch, draft_seconds, sure).max() > enough:
            # A new text: earlier ones say little about it.
            patience = min(patience, self._explore_every // LOOK_SPEEDUP)
        self._since_look += 1
        shallowest = int((ceiling > enough).argmax()) + 1
        if not levels:
            patience = max(patience, self._lost(batch, shallowest, plain_seconds) / LOOK_COST)
        if self._since_look < patience or levels >= deepest:
            return levels, False
        self._since_look = 0
        if levels:
            return deepest, False
        self._patience = min(2 * self._patience, 4 * self._explore_every)
        return shallowest, True

    def _rare_look(self, batch: DraftPlan, plain_seconds: float) -> tuple[int, bool]:
        """Decide whether to explore although by the current costs no draft could pay.

        Costs are only learned from what runs, so drafting must run from time to time.
        """
        self._since_look += 1
        if self._since_look < max(4 * self._explore_every, self._lost(batch, 1, plain_seconds) / RARE_COST):
            return 0, False
        self._since_look = 0
        return 1, True

    def _lost(self, batch: DraftPlan, levels: int, plain_seconds: float) -> float:
        """Return the cost of an unsuccessful exploration, in plain steps."""
        one = _looking(batch)
        draft_seconds = self.draft.seconds(levels, int(batch.behind[one]), 1)
        looking = draft_seconds + self.target.seconds(batch.rows + levels) + self.host.with_trees
        return (looking - plain_seconds) / plain_seconds

    def _draft_seconds(self, batch: DraftPlan, most: int) -> Floats:
        """Return the seconds of drafting 1 to ``most`` levels that are charged to this round."""
        behind = batch.behind[batch.levels_each > 0]
        usual = np.minimum(behind, most + 1)
        rows = round(float((usual + (behind - usual) / PAYING_ROUNDS).sum())), batch.frontier_rows
        return np.array([self.draft.seconds(levels, *rows) for levels in range(1, most + 1)])

    def _rates_of_chains(self, batch: DraftPlan, draft_seconds: Floats, chance: float) -> Floats:
        """Return the tokens per second of chains of 1, 2, … levels.

        Each node is accepted with probability ``chance`` if its parent is; 1 gives an upper bound for any
        draft.
        """
        depths = np.arange(1, len(draft_seconds) + 1)
        nodes = (batch.levels_each >= depths[:, None]).sum(axis=1)
        gains = (nodes * chance**depths).cumsum()
        rows = nodes.cumsum()
        part = np.minimum(rows, batch.room) / np.maximum(rows, 1)
        seconds = self.target.curve(batch.rows + rows * part) + draft_seconds + self.host.with_trees
        rates: Floats = (batch.tokens + gains * part) / seconds
        return rates

    def _expected_rates(self, batch: DraftPlan, draft_seconds: Floats) -> Floats:
        """Return the tokens per second of rounds of 1, 2, … levels with the best number of nodes.

        Takes candidates from the likeliest knot to the least likely, up to the most that may be verified.
        """
        depths = np.arange(1, len(draft_seconds) + 1)
        deep = batch.levels_each >= depths[:, None]  # [levels, S]
        yields = self._spectrum.mean()[: len(depths)]
        # [levels, knots], likeliest knot first
        nodes = (yields * deep.sum(axis=1)[:, None]).cumsum(axis=0)[:, ::-1]
        gains = (yields * self.acceptance.curve * (deep @ batch.factors)[:, None]).cumsum(axis=0)[:, ::-1]
        left = min(batch.room, int(batch.caps.sum())) - (nodes.cumsum(axis=1) - nodes)
        part = np.clip(left / np.maximum(nodes, 1e-12), 0.0, 1.0)
        seconds = self.target.curve(batch.rows + (nodes * part).cumsum(axis=1)) + self.host.with_trees
        rates = (batch.tokens + (gains * part).cumsum(axis=1)) / (seconds + draft_seconds[:, None])
        best: Floats = rates.max(axis=1)
        return best


def _looking(batch: DraftPlan) -> int:
    """Return the sequence to explore with: among those that may draft, new ones first, then the cheapest.

    At least one sequence must be allowed to draft.
    """
    return int(np.lexsort((batch.behind, ~batch.new, batch.levels_each == 0))[0])


def _looked_up(candidates: Candidates) -> npt.NDArray[np.bool_]:
    if candidates.source_scores is None:
        return np.zeros(candidates.scores.shape, np.bool_)
    return np.isfinite(candidates.source_scores[:, :, LOOKUP])
