"""Candidates, picked trees and the choice of the best nodes, against plain Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import Part, build_batch
from engine.draft.candidates import Candidates, best_first, pick

Tree = list[tuple[int, float]]
"""(parent, score) of each candidate of one sequence, parents first; a score of -inf is no candidate."""


@st.composite
def tables(draw: st.DrawFn) -> list[Tree]:
    """Some sequences' candidates, many scores equal."""
    trees: list[Tree] = []
    for _ in range(draw(st.integers(1, 4))):
        tree: Tree = []
        for i in range(draw(st.integers(0, 70))):
            parent = draw(st.integers(max(-1, i - 9), i - 1)) if i else -1
            above = 0.0 if parent < 0 else tree[parent][1]
            tree.append((parent, above - draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 7.5, float("inf")]))))
        trees.append(tree)
    return trees


def candidates_of(trees: list[Tree]) -> Candidates:
    shape = (len(trees), max(map(len, trees)))
    token_ids, parents, depths = np.zeros(shape, np.int64), np.full(shape, -1), np.zeros(shape, np.int64)
    scores = np.full(shape, -np.inf, np.float32)
    for row, tree in enumerate(trees):
        for i, (parent, score) in enumerate(tree):
            token_ids[row, i] = 1000 * row + i
            parents[row, i], scores[row, i] = parent, score
            depths[row, i] = 1 if parent < 0 else depths[row, parent] + 1
    return Candidates(token_ids, parents, depths, scores)


def line(tree: Tree, node: int) -> list[int]:
    """``node`` and its ancestors, the root left out."""
    return [] if node < 0 else [*line(tree, tree[node][0]), node]


@settings(max_examples=150, deadline=None)
@given(trees=tables(), seed=st.integers(0, 1 << 16))
def test_picked_trees_keep_tokens_order_ancestors_and_masks(trees: list[Tree], seed: int) -> None:
    rng = random.Random(seed)
    candidates = candidates_of(trees)
    candidates.check()
    chosen = np.zeros(candidates.scores.shape, np.bool_)
    for row, tree in enumerate(trees):
        for leaf in rng.sample(range(len(tree)), rng.randint(0, min(4, len(tree)))):
            if len({*np.flatnonzero(chosen[row]).tolist(), *line(tree, leaf)}) <= 63:
                chosen[row, line(tree, leaf)] = True
    picked = pick(candidates, chosen)
    assert len(picked) == len(trees)
    for row, (tree, found) in enumerate(zip(trees, picked, strict=True)):
        nodes = np.flatnonzero(chosen[row]).tolist()
        if not nodes:
            assert found is None
            continue
        assert found is not None
        place = {node: i for i, node in enumerate(nodes)} | {-1: -1}
        assert found.token_ids.tolist() == [1000 * row + node for node in nodes]
        assert found.parents.tolist() == [place[tree[node][0]] for node in nodes]
        assert found.depths.tolist() == [len(line(tree, node)) for node in nodes]
        np.testing.assert_array_equal(found.scores, np.float32([tree[node][1] for node in nodes]))
        masks = [1, *(1 | sum(2 << place[a] for a in line(tree, node)) for node in nodes)]
        assert found.masks.tolist() == masks


def test_nothing_chosen_is_no_tree() -> None:
    candidates = candidates_of([[(-1, -1.0)], []])
    assert pick(candidates, np.zeros((2, 1), np.bool_)) == [None, None]
    empty = Candidates(*(np.zeros((2, 0), np.int64) for _ in range(3)), np.zeros((2, 0), np.float32))
    assert pick(empty, np.zeros((2, 0), np.bool_)) == [None, None]


@settings(max_examples=150, deadline=None)
@given(trees=tables(), width=st.integers(1, 63))
def test_the_best_nodes_are_those_of_a_plain_rerank_and_hang_together(trees: list[Tree], width: int) -> None:
    """EAGLE-2's rerank: the best by score, ties in the order they were made."""
    order = best_first(candidates_of(trees).scores, width)
    for row, tree in enumerate(trees):
        ranked = sorted(range(len(tree)), key=lambda node: (-np.float32(tree[node][1]), node))
        best = [node for node in ranked if np.isfinite(tree[node][1])][:width]
        assert order[row].tolist()[: len(best)] == best
        kept = set(best)
        assert all(tree[node][0] in kept | {-1} for node in best), "a node was kept without its parent"


def test_a_broken_order_is_noticed() -> None:
    with pytest.raises(AssertionError, match="above its parent"):
        candidates_of([[(-1, -2.0), (0, -1.0)]]).check()
    backwards = Candidates(
        np.zeros((1, 2), np.int64),
        np.array([[1, -1]]),
        np.array([[2, 1]]),
        np.array([[-2, -1]], dtype=np.float32),
    )
    with pytest.raises(AssertionError):
        backwards.check()


def test_a_packed_row_of_trees_and_spans() -> None:
    """Slots count from the part's first one, whatever the positions are; masks keep all 64 bits."""
    tree = candidates_of([[(i - 1, -float(i)) for i in range(63)]])
    (picked,) = pick(tree, np.ones((1, 63), np.bool_))
    assert picked is not None
    parts = [
        Part(np.arange(3), np.arange(3), [4, 2], first=2),
        Part(
            np.arange(64), np.arange(50, 114), list(range(8, 30)), first=6, tree_start=6, masks=picked.masks
        ),
    ]
    batch = build_batch(parts, 4, torch.device("cpu"))
    assert batch.slots[:3].tolist() == [18, 19, 8]
    assert batch.slots[3:].tolist() == [8 * 4 + i for i in range(6, 70)]
    assert (batch.span_starts, batch.prefix_lens, batch.trees) == ((0, 3, 67), (2, 6), (False, True))
    assert batch.tree_masks is not None
    assert [mask & (1 << 64) - 1 for mask in batch.tree_masks[3:].tolist()] == picked.masks.tolist()
    assert batch.positions[3:].tolist() == list(range(50, 114))


def test_trap_2_three_positions_a_token_leave_its_slot_alone() -> None:
    """M-RoPE: positions after a picture are smaller than slots, and there are three of them."""
    positions = np.array([[5, 5, 6], [5, 6, 6], [5, 7, 6]])
    batch = build_batch([Part(np.arange(3), positions, [7, 3, 9], first=6)], 4, torch.device("cpu"))
    assert batch.slots.tolist() == [14, 15, 36]
    assert batch.positions.tolist() == positions.tolist()
