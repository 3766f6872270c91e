"""Chooses how many nodes of each tree to verify: the optimisation at the core of the budget. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.speculation.costs import CostTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MARGIN = 1.02  # factor by which speculation must beat plain decoding, since estimates are noisy


def choose_counts(
    chances: Floats,
    caps: Ints,
    target: CostTable,
    *,
    tokens: int,
    rows: int,
    room: int,
    spent: float = 0.0,
    overhead: float = 0.0,
    at_least: int = 0,
) -> Ints:
    """Return how many of its best candidates each sequence should verify, ``[S]``, for the most tokens per
    second.

    ``chances`` ``[S, W]`` in 0..1: acceptance probabilities, never increasing along a row; 0 where there is
    no candidate. ``caps`` ``[S]`` limits the nodes of each tree, ``room`` those of all trees; at least
    ``at_least`` in total are taken if there are as many. Without drafts the forward pass has ``rows`` rows
    and yields ``tokens``. ``spent`` seconds are lost whatever is chosen; choosing anything adds ``overhead``
    seconds and must win by the factor ``MARGIN``. Costs one sort, no loop.
    """
    allowed = (np.arange(chances.shape[1]) < caps[:, None]) & (chances > 0)
    gains = np.sort(chances[allowed])[::-1][:room]
    seconds = target.curve(rows + np.arange(len(gains) + 1)) + spent
    seconds[1:] += overhead
    rates = (tokens + np.concatenate([[0.0], gains.cumsum()])) / seconds
    rates[0] *= MARGIN
    count = max(int(rates.argmax()), min(at_least, len(gains)))
    if count == 0:
        return np.zeros(len(caps), np.int64)
    better = allowed & (chances > gains[count - 1])
    equal = allowed & (chances == gains[count - 1])
    chosen = better | (equal & (equal.cumsum().reshape(equal.shape) <= count - better.sum()))
    counts: Ints = chosen.sum(axis=1)
    return counts
