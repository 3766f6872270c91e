"""What a draft proposes and what look-up finds, as one tree: against plain sets of paths."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TreeLimits
from engine.draft.candidates import Candidates, pick
from engine.draft.merge import DRAFT, LOOKUP, merge
from engine.speculation.budget import SpeculationBudget
from engine.speculation.costs import CostTable, DraftCosts

Paths = dict[tuple[int, ...], float]
"""Score of each path from the root; with a path all of its beginnings."""


@st.composite
def paths(draw: st.DrawFn) -> Paths:
    found: Paths = {}
    for _ in range(draw(st.integers(0, 12))):
        above = draw(st.sampled_from([(), *sorted(found)]))
        path = (*above, draw(st.integers(1, 4)))
        if len(path) <= 6 and path not in found:
            found[path] = found.get(above, 0.0) - draw(st.sampled_from([0.0, 0.25, 1.0, 4.0]))
    return found


def candidates_of(rows: list[Paths]) -> Candidates:
    shape = len(rows), max(map(len, rows))
    token_ids, parents, depths = np.zeros(shape, np.int64), np.full(shape, -1), np.zeros(shape, np.int64)
    scores = np.full(shape, -np.inf, np.float32)
    for row, own in enumerate(rows):
        order = list(own)
        for i, path in enumerate(order):
            token_ids[row, i], depths[row, i], scores[row, i] = path[-1], len(path), own[path]
            parents[row, i] = order.index(path[:-1]) if len(path) > 1 else -1
    return Candidates(token_ids, parents, depths, scores)


def paths_of(candidates: Candidates, row: int, scores: npt.NDArray[np.float32]) -> Paths:
    lines: list[tuple[int, ...]] = []
    for i in range(candidates.scores.shape[1]):
        parent = int(candidates.parents[row, i])
        lines.append((*(lines[parent] if parent >= 0 else ()), int(candidates.token_ids[row, i])))
    real = np.flatnonzero(np.isfinite(candidates.scores[row])).tolist()
    assert len({lines[i] for i in real}) == len(real), "a path stands there twice"
    return {lines[i]: float(scores[row, i]) for i in real if np.isfinite(scores[row, i])}


@settings(max_examples=150, deadline=None)
@given(pairs=st.lists(st.tuples(paths(), paths()), min_size=1, max_size=4))
def test_every_path_once_with_the_better_score(pairs: list[tuple[Paths, Paths]]) -> None:
    drafted, found = (candidates_of([pair[i] for pair in pairs]) for i in range(2))
    merged = merge(drafted, found, lambda scores: scores * np.float32(0.5))
    merged.check()
    assert merged.source_scores is not None
    for row, (own, other) in enumerate(pairs):
        wanted = dict(own)
        for path, score in other.items():  # beginnings first
            above = wanted[path[:-1]] if len(path) > 1 else 0.0
            wanted[path] = max(wanted.get(path, float("-inf")), min(0.5 * score, above))
        assert paths_of(merged, row, merged.scores) == wanted
        assert paths_of(merged, row, merged.source_scores[:, :, LOOKUP]) == other
        assert paths_of(merged, row, merged.source_scores[:, :, DRAFT]) == own


def budget() -> SpeculationBudget:
    flat = DraftCosts(CostTable({1: 0.001}), CostTable({1: 0.001}))
    return SpeculationBudget(CostTable({1: 1.0, 64: 1.5}), flat, max_steps=3)


def round_of(own: SpeculationBudget, drafted: Paths, found: Paths, right: set[tuple[int, ...]]) -> Paths:
    """One round; the paths that were verified, with their scores."""
    limits = [TreeLimits(num_steps=3, topk=4, num_draft_tokens=8)]
    plan = own.plan(["a"], limits, behind=[1], max_rows=64)
    merged = merge(candidates_of([drafted]), candidates_of([found]), own.translate)
    chosen = own.choose(plan, merged)
    (tree,) = pick(merged, chosen)
    kept = np.where(chosen, merged.scores, np.float32(-np.inf))
    verified = paths_of(merged, 0, kept)
    if tree is not None:
        own.observe("a", tree, [i for i, path in enumerate(verified) if path in right])
    return verified


def test_each_source_is_believed_as_far_as_it_was_right() -> None:
    """Both say the same of their tokens; look-up is always right and the draft never, then the reverse."""
    drafted: Paths = {(1,): -1.0, (1, 1): -2.0}
    found: Paths = {(2,): -1.0, (2, 2): -2.0, (2, 2, 2): -3.0}
    for right, wrong in ((found, drafted), (drafted, found)):
        own = budget()
        for _ in range(60):
            last = round_of(own, drafted, found, set(right))
        assert set(right) <= set(last)
        assert not set(wrong) & set(last)


def test_what_is_looked_up_may_be_deeper_than_what_is_drafted() -> None:
    own = budget()
    limits = [TreeLimits(num_steps=3, topk=4, num_draft_tokens=8)]
    plan = own.plan(["a"], limits, behind=[1], max_rows=64)
    shallow = dataclasses.replace(plan, levels_each=np.array([1]))
    drafted: Paths = {(1,): -0.1, (1, 1): -0.2}
    found: Paths = {(2,): -0.1, (2, 2): -0.2, (2, 2, 2): -0.3}
    merged = merge(candidates_of([drafted]), candidates_of([found]), own.translate)
    chosen = own.choose(shallow, merged)
    verified = paths_of(merged, 0, np.where(chosen, merged.scores, np.float32(-np.inf)))
    assert set(verified) == {(1,), *found}


def test_what_was_said_goes_with_candidates_to_their_rows() -> None:
    """In a trial one sequence of several is drafted for; what look-up finds is not the draft's doing."""
    merged = merge(candidates_of([{(1,): -0.5}]), candidates_of([{(2,): -0.5}]), lambda scores: scores)
    wide = merged.spread([False, True])
    assert merged.source_scores is not None
    assert wide.source_scores is not None
    assert (wide.source_scores[1] == merged.source_scores[0]).all()
    assert np.isneginf(wide.source_scores[0]).all()
