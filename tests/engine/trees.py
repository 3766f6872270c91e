"""Trees written down by hand. No torch."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from engine.draft.candidates import Candidates

Nodes = list[tuple[int, int]]
"""(token id, parent) of a tree's nodes, parents first; -1 is the root."""


def candidates_of(trees: Seq[Nodes]) -> Candidates:
    """Candidates that are worth less the deeper they are."""
    width = max(map(len, trees))
    token_ids, depths = np.zeros((2, len(trees), width), np.int64)
    parents, scores = np.full((len(trees), width), -1), np.full((len(trees), width), -np.inf, np.float32)
    for row, nodes in enumerate(trees):
        for i, (token_id, parent) in enumerate(nodes):
            token_ids[row, i], parents[row, i] = token_id, parent
            depths[row, i] = 1 if parent < 0 else depths[row, parent] + 1
            scores[row, i] = -depths[row, i]
    return Candidates(token_ids, parents, depths, scores)
