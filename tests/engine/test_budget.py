"""Depth and nodes follow measured costs and learned acceptance, within every limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TreeLimits
from engine.draft.candidates import Candidates, DraftTree, best_first, pick
from engine.speculation.budget import SpeculationBudget
from engine.speculation.costs import CostTable, DraftCosts
from engine.speculation.nodes import MARGIN, choose_counts

# Milliseconds of one forward of a 135M model on two cores: eager, steep and bumpy; compiled, flat to 8 rows.
EAGER = {1: 59, 2: 99, 3: 120, 4: 98, 6: 109, 8: 102, 12: 118, 16: 152, 24: 180, 32: 156, 48: 191, 64: 233}
COMPILED = {1: 42, 2: 39, 3: 45, 4: 42, 6: 43, 8: 50, 12: 58, 16: 67, 24: 82, 32: 103, 48: 140, 64: 162}
LIMIT = TreeLimits(num_steps=6, topk=6, num_draft_tokens=32)


def costs(points: dict[int, int]) -> CostTable:
    return CostTable({rows: ms / 1000 for rows, ms in points.items()})


def draft_costs(scale: float = 1.0) -> DraftCosts:
    return DraftCosts(
        CostTable({1: 0.004 * scale, 64: 0.012 * scale}), CostTable({1: 0.003 * scale, 400: 0.04 * scale})
    )


def a_budget(points: dict[int, int] = COMPILED, draft: DraftCosts | None = None) -> SpeculationBudget:
    return SpeculationBudget(costs(points), draft or draft_costs(), max_steps=LIMIT.num_steps)


def trees(scores: np.ndarray, parents: np.ndarray) -> Candidates:
    """Candidates from the log-probability of each after its parent, ``-inf`` where there is none."""
    total, depths = scores.astype(np.float32).copy(), np.ones(scores.shape, np.int64)
    for s, i in np.argwhere(parents >= 0):
        total[s, i] += total[s, parents[s, i]]
        depths[s, i] = depths[s, parents[s, i]] + 1
    return Candidates(np.arange(scores.size).reshape(scores.shape), parents, depths, total)


def chains(step_scores: list[float], depth: int = 6) -> Candidates:
    """One chain a sequence, each step with that log-probability."""
    scores = np.repeat(np.array(step_scores)[:, None], depth, axis=1)
    return trees(scores, np.tile(np.arange(depth) - 1, (len(step_scores), 1)))


def names(count: int) -> list[str]:
    return [f"request {i}" for i in range(count)]


def chosen_of(budget: SpeculationBudget, candidates: Candidates, **limits: int) -> np.ndarray:
    count = candidates.num_sequences
    limit = TreeLimits(**{"num_steps": 6, "topk": 6, "num_draft_tokens": 32, **limits})
    plan = budget.plan(names(count), [limit] * count, behind=[1] * count, max_rows=512)
    return budget.choose(plan, candidates)


def test_nodes_follow_the_table() -> None:
    """An even chance a step is worth six rows where they are free, and none where they are dear."""
    even = chains([np.log(0.5)])
    flat, steep = {1: 40, 64: 41}, {1: 10, 2: 18, 64: 600}
    assert chosen_of(a_budget(flat), even).sum() == 6
    assert chosen_of(a_budget(COMPILED), even).sum() in range(2, 6)
    assert chosen_of(a_budget(steep), even).sum() == 0
    # The eager table's second row is dearer than its eighth: nothing, or enough to pass the bump.
    likely = chains([np.log(0.9)])
    assert chosen_of(a_budget(EAGER), likely).sum() >= 3
    assert chosen_of(a_budget(EAGER), chains([np.log(0.3)])).sum() == 0


@st.composite
def random_trees(draw: st.DrawFn) -> Candidates:
    """Trees with many ties, full and empty rows."""
    count, width = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    shape = (count, width)
    scores, parents = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
    for s in range(count):
        for i in range(draw(st.integers(0, width))):
            parents[s, i] = draw(st.integers(-1, i - 1))
            scores[s, i] = draw(st.sampled_from([0.0, 0.0, -1e-7, -0.1, -0.7, -4.0, -13.0]))
    return trees(scores, parents)


@given(
    candidates=random_trees(),
    seen=st.lists(st.lists(st.tuples(st.floats(-5, 0, width=32), st.booleans()), max_size=6), max_size=6),
    num_draft_tokens=st.integers(1, 8),
    room=st.integers(0, 20),
    points=st.sampled_from([EAGER, COMPILED, {1: 40, 2: 41}]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_chosen_hangs_together_and_keeps_every_cap(
    candidates: Candidates,
    seen: list[list[tuple[float, bool]]],
    num_draft_tokens: int,
    room: int,
    points: dict[int, int],
) -> None:
    candidates.check()
    budget = a_budget(points)
    for nodes in seen:
        tree = a_tree([score for score, _ in nodes])
        budget.observe("request 0", tree, [i for i, (_, accepted) in enumerate(nodes) if accepted])
    count = candidates.num_sequences
    limit = TreeLimits(num_steps=6, topk=6, num_draft_tokens=num_draft_tokens)
    plan = budget.plan(
        names(count), [limit] * count, behind=[1] * count, max_rows=count + room + 3, other_rows=3
    )
    chosen = budget.choose(plan, candidates)
    assert chosen.shape == candidates.scores.shape
    assert np.isfinite(candidates.scores[chosen]).all()
    for s, i in np.argwhere(chosen):
        parent = candidates.parents[s, i]
        assert parent < 0 or chosen[s, parent]
    assert (chosen.sum(axis=1) <= num_draft_tokens).all()
    assert chosen.sum() <= room


def a_tree(scores: list[float]) -> DraftTree:
    many = len(scores)
    chain = np.arange(many)
    masks = np.zeros(many + 1, np.uint64)
    return DraftTree(chain, chain - 1, chain + 1, np.array(scores, np.float32), masks)


@given(
    rows=st.lists(st.lists(st.floats(0.001, 1), max_size=5), min_size=1, max_size=3),
    caps=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    room=st.integers(0, 12),
    spent=st.floats(0, 0.05),
    overhead=st.floats(0, 0.01),
    points=st.sampled_from([EAGER, COMPILED]),
)
@settings(max_examples=80, deadline=None)
def test_no_other_choice_is_better(
    rows: list[list[float]],
    caps: list[int],
    room: int,
    spent: float,
    overhead: float,
    points: dict[int, int],
) -> None:
    """Against every combination of counts."""
    count, table = len(rows), costs(points)
    chances = np.array([sorted(row, reverse=True) + [0.0] * (5 - len(row)) for row in rows])
    found = choose_counts(
        chances,
        np.array(caps[:count]),
        table,
        tokens=count + 2,
        rows=count + 7,
        room=room,
        spent=spent,
        overhead=overhead,
    )

    def rate(counts: tuple[int, ...]) -> float:
        gain = sum(chances[s, :n].sum() for s, n in enumerate(counts))
        seconds = table.seconds(count + 7 + sum(counts)) + spent + (overhead if any(counts) else 0)
        return (count + 2 + gain) / seconds * (1 if any(counts) else MARGIN)

    ranges = [range(min(len(row), cap) + 1) for row, cap in zip(rows, caps, strict=False)]
    every = [c for c in np.ndindex(*(len(r) for r in ranges)) if sum(c) <= room]
    assert tuple(found) in every
    assert rate(tuple(found)) == pytest.approx(max(map(rate, every)))


@given(st.lists(st.sampled_from([0.0, -0.0, -1e-30, -0.5, -2.0, -np.inf]), max_size=12), st.integers(0, 12))
def test_best_first_keeps_the_order_of_ties(scores: list[float], width: int) -> None:
    row = np.array([scores], np.float32)
    expected = sorted(range(len(scores)), key=lambda i: -scores[i])[:width]
    assert best_first(row, width)[0].tolist() == expected


def test_a_request_whose_drafts_are_accepted_gets_more_nodes() -> None:
    budget = a_budget()
    for _ in range(30):
        budget.observe("request 0", a_tree([-0.7, -1.4]), [])
        budget.observe("request 1", a_tree([-0.7, -1.4]), [0, 1])
        budget.plan(names(2), [LIMIT] * 2, behind=[1, 1], max_rows=64)
    chosen = chosen_of(budget, chains([-0.7, -0.7]))
    assert chosen[1].sum() > chosen[0].sum()


def test_nothing_to_choose_is_fine() -> None:
    budget = a_budget()
    assert budget.plan([], [], behind=[], max_rows=64, other_rows=10).levels == 0
    nothing = Candidates(*(np.zeros((2, 0), t) for t in (np.int64, np.int64, np.int64, np.float32)))
    assert chosen_of(budget, nothing).shape == (2, 0)
    empty = chains([-np.inf, -np.inf])
    assert pick(empty, chosen_of(budget, empty)) == [None, None]
    with pytest.raises(ValueError, match="3 sequences"):
        budget.choose(budget.plan(names(2), [LIMIT] * 2, behind=[1, 1], max_rows=64), chains([-1.0] * 3))


@pytest.mark.parametrize("field", ["num_steps", "topk", "num_draft_tokens"])
def test_a_zero_in_any_limit_is_plain_decoding(field: str) -> None:
    off = TreeLimits(**{"num_steps": 6, "topk": 6, "num_draft_tokens": 32, field: 0})
    budget = a_budget({1: 40, 64: 41})
    assert budget.plan(names(2), [off, off], behind=[1, 1], max_rows=64).levels == 0
    plan = budget.plan(names(2), [off, LIMIT], behind=[1, 1], max_rows=64)
    assert plan.levels > 0
    assert plan.levels_each.tolist() == [0, plan.levels]
    assert budget.plan(names(2), [LIMIT] * 2, behind=[1, 1], max_rows=2).levels == 0  # no room for a node


def test_each_request_keeps_its_own_depth() -> None:
    shallow = TreeLimits(num_steps=2, topk=6, num_draft_tokens=32)
    budget = a_budget({1: 40, 64: 41})
    plan = budget.plan(names(2), [shallow, LIMIT], behind=[1, 1], max_rows=64)
    assert plan.levels_each.tolist() == [2, 6]
    assert budget.choose(plan, chains([-0.1, -0.1])).sum(axis=1).tolist() == [2, 6]


def test_work_on_the_host_counts() -> None:
    even = chains([np.log(0.5)])
    budget = a_budget()
    assert chosen_of(budget, even).any()
    for _ in range(200):
        budget.observe_host(0.002, speculating=False)
        budget.observe_host(0.100, speculating=True)
    assert (budget.host.plain, budget.host.with_trees) == pytest.approx((0.002, 0.100), rel=0.05)
    assert not chosen_of(budget, even).any()
