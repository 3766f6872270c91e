"""How much to speculate, so that it never loses: measured costs against learned acceptance. No torch.

Two choices a step, both for the largest expected tokens per second of the whole batch. Before drafting, how
many levels to draft (0 is plain decoding, with no draft work at all); after it, which candidates to verify.

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

What a round gains is the sum of its nodes' probabilities of acceptance, since each accepted node is one token
more. What a round of L levels would offer is known from earlier ones (``CandidateSpectrum``), so the first
choice weighs the same sums as the second, at any number of sequences.

What the draft has not read yet (a prompt; what was decoded plainly) it reads once, for all rounds to come: a
decision counts a share of it.

An estimate that says "do not" would never be tested again, so every ``explore_every`` decisions the budget
looks: one level where it plays safe, the full depth where it drafts a shallower one. Where by its costs
nothing would win, were the draft right throughout, it looks rarely: they may be those of a busy hour. Looks
in vain become up to four times rarer, one that finds something is followed by more; but none comes before the
time that it would lose is a small share of the time since the last. Against the estimates
one sequence looks, a new one or that for which the draft has least to read: what it finds is true of all, and
all together would read every token that was decoded plainly. While one is new it looks sooner. Decisions
depend on what was observed alone: no random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.config import SpeculativeConfig
from engine.draft.candidates import Candidates, DraftTree, best_first
from engine.draft.merge import DRAFT, LOOKUP
from engine.speculation.acceptance import KNOTS, AcceptanceModel, CandidateSpectrum, knot_places
from engine.speculation.costs import CostTable, DraftCosts, HostCosts
from engine.speculation.nodes import MARGIN, choose_counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FREE = 0.01  # a draft that costs less than this share of a plain step is always asked
FIRST_TREES = 4  # drafted before the estimates may say no …
FIRST_PLAIN = 2  # … and plain steps after them, to see what the host does without trees; one is enough
PAYING_ROUNDS = 16  # share what the draft has to read beyond what one round adds
LOOK_SPEEDUP = 8  # so many times as often it looks where something was found, or a request is new
LOOK_COST = 0.05  # of all time, at most, goes to looks against the estimates, …
RARE_COST = 0.01  # … and to those where by its costs nothing could win


@dataclass(slots=True, frozen=True)
class DraftPlan:
    """How deep to draft in this step, for S sequences; what ``choose`` and ``observe_draft`` need to know.

    ``levels_each`` int64 ``[S]``: ``levels`` or the request's own limit. ``caps`` int64 ``[S]``: the most
    nodes of a tree. ``factors`` float64 ``[S]``. ``behind`` int64 ``[S]``: rows that the draft must read.
    ``new`` bool ``[S]``: nothing was drafted for it yet. ``trial``: the estimates say no and are being
    tested. ``tokens``: what the step yields without drafts. ``rows``: its rows without drafts, of which
    there may be ``room`` more. ``draft_seconds``: what of drafting counts for this round.
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
        """What the draft reads in this round."""
        return int(self.behind[self.levels_each > 0].sum())


class SpeculationBudget:
    """Chooses depth and nodes for every step and learns from what came of it.

    ``target`` and ``draft`` are refined in place. ``max_steps``: the deepest that any request may draft.
    """

    def __init__(
        self, target: CostTable, draft: DraftCosts, *, max_steps: int, explore_every: int = 64
    ) -> None:
        self.target = target
        self.draft = draft
        self.acceptance = AcceptanceModel()
        self._lookup = AcceptanceModel()  # of what look-up finds beside a draft, by its own scores
        self._spectrum = CandidateSpectrum(max_steps)
        self._explore_every = explore_every
        self._patience = explore_every  # decisions until the next look
        self._on_trial = False
        self._since_look = 0
        self._num_trees = self._num_plain = 0
        self.host = HostCosts()

    def plan(
        self,
        request_ids: Sequence[str],
        limits: Sequence[SpeculativeConfig],
        *,
        behind: Sequence[int],
        max_rows: int,
        other_rows: int = 0,
        other_tokens: int = 0,
    ) -> DraftPlan:
        """How deep to draft for these sequences, which decode one row each.

        ``behind``: rows that the draft must run before it can propose, for each (for look-up, 1).
        ``other_rows`` run in the same forward (prompt chunks, sequences that may not speculate)
        and yield ``other_tokens``. ``max_rows`` bounds the forward.
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
        """Which candidates to verify, ``[S, C]``; with a candidate always its parent. Those deeper than
        their sequence may draft are left out.

        Raises ``ValueError`` if the candidates are not those of the plan's sequences.
        """
        if candidates.num_sequences != len(plan.caps):
            raise ValueError(f"candidates of {candidates.num_sequences} sequences, not {len(plan.caps)}")
        self._num_trees += candidates.num_sequences
        looked_up = _looked_up(candidates)
        # A batch is drafted as deep as its deepest. What is looked up is there whatever is drafted.
        within = (candidates.depths <= plan.levels_each[:, None]) | looked_up
        scores = np.where(within, candidates.scores, np.float32(-np.inf))
        order = best_first(scores, int(plan.caps.max(initial=0)))
        scores = np.take_along_axis(scores, order, axis=1)
        below, share = knot_places(scores)
        real = np.isfinite(scores)
        depths = np.take_along_axis(np.where(looked_up, 1, candidates.depths), order, axis=1)
        self._spectrum.observe(depths[real], below[real], share[real], plan.levels_each)
        if plan.trial:  # what the draft says, whatever was made of it before
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
        """Scores of look-up as the draft's scores that are worth as much."""
        chances = self._lookup.calibrate(scores)
        worth: npt.NDArray[np.float32] = np.interp(chances, self.acceptance.curve, KNOTS).astype(np.float32)
        return worth

    def observe(self, request_id: str, tree: DraftTree, accepted: Sequence[int]) -> None:
        """A verified tree and the indices of its walked nodes, whether or not the output ended among them."""
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
        """A forward of the target over ``rows`` rows took ``seconds``."""
        self.target.observe(rows, seconds)

    def observe_draft(self, plan: DraftPlan, seconds: float) -> None:
        """Drafting as planned, at least one level, took ``seconds``."""
        self.draft.observe(plan.levels, plan.extend_rows, plan.frontier_rows, seconds)

    def observe_host(self, seconds: float, *, speculating: bool) -> None:
        """Seconds of a step that were neither the target's forward nor drafting."""
        self.host.observe(seconds, speculating=speculating)

    def forget(self, request_id: str) -> None:
        """The request ended. Ids that never speculated are fine."""
        self.acceptance.forget(request_id)
        self._lookup.forget(request_id)

    def _levels(self, batch: DraftPlan) -> tuple[int, bool]:
        """Levels to draft, and whether that is a trial against the estimates."""
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
            patience = min(
                patience, self._explore_every // LOOK_SPEEDUP
            )  # a new text: earlier ones say little of it
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
        """By these costs no draft could pay; but they are learned from what runs, so it must run at times."""
        self._since_look += 1
        if self._since_look < max(4 * self._explore_every, self._lost(batch, 1, plain_seconds) / RARE_COST):
            return 0, False
        self._since_look = 0
        return 1, True

    def _lost(self, batch: DraftPlan, levels: int, plain_seconds: float) -> float:
        """Plain steps that a look in vain takes."""
        one = _looking(batch)
        draft_seconds = self.draft.seconds(levels, int(batch.behind[one]), 1)
        looking = draft_seconds + self.target.seconds(batch.rows + levels) + self.host.with_trees
        return (looking - plain_seconds) / plain_seconds

    def _draft_seconds(self, batch: DraftPlan, most: int) -> Floats:
        """Seconds of drafting 1 to ``most`` levels, as far as a round must pay for them."""
        behind = batch.behind[batch.levels_each > 0]
        usual = np.minimum(behind, most + 1)
        rows = round(float((usual + (behind - usual) / PAYING_ROUNDS).sum())), batch.frontier_rows
        return np.array([self.draft.seconds(levels, *rows) for levels in range(1, most + 1)])

    def _rates_of_chains(self, batch: DraftPlan, draft_seconds: Floats, chance: float) -> Floats:
        """Tokens a second of chains of 1 … levels, each node of which is accepted by this ``chance`` if its
        parent is. By 1 it is more than any draft can give.
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
        """Tokens a second of rounds of 1 … levels with the best number of nodes.

        Takes candidates from the likeliest knot to the least, until they would be more than may be verified.
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
    """Of the sequences that may draft, of which there is one, a new one, or the one that costs least."""
    return int(np.lexsort((batch.behind, ~batch.new, batch.levels_each == 0))[0])


def _looked_up(candidates: Candidates) -> npt.NDArray[np.bool_]:
    if candidates.source_scores is None:
        return np.zeros(candidates.scores.shape, np.bool_)
    return np.isfinite(candidates.source_scores[:, :, LOOKUP])
