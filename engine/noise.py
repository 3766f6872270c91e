"""Counter-based noise: one uniform number per (seed, choice, output position), and no generator state.

The same request draws the same text alone or in a batch, on any device, with or without speculation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(
    seeds: npt.NDArray[np.uint64], choices: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) with 53 bits, elementwise.

    Three rounds of the SplitMix64 finaliser (Steele, Lea, Flood 2014), absorbing one counter each.
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        state = _mix(seeds + _GOLDEN)
        state = _mix((state ^ choices) + _GOLDEN)
        state = _mix((state ^ positions) + _GOLDEN)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
