"""How many nodes of each tree are worth verifying: the sums at the heart of the budget. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.speculation.costs import CostTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MARGIN = 1.02  # speculation must promise so much more than plain decoding: estimates are noisy


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
    """How many of its best candidates each sequence should verify, ``[S]``, for the most tokens a second.

    ``chances`` ``[S, W]`` in 0..1: probabilities of acceptance, never rising along a row; 0 where there is no
    candidate. ``caps`` ``[S]`` and ``room`` bound the nodes of each tree and of all; ``at_least`` are taken
    where there are as many. Without drafts the forward has ``rows`` rows and yields ``tokens``; ``spent``
    seconds are gone whatever is chosen, ``overhead`` seconds are added by choosing anything, which must win
    by ``MARGIN``. Costs one sort, no loop.
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
