"""Compares two ways of doing a thing, interleaved, since the speed of a machine drifts within minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Measure = Callable[[int], float]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Minimum, median and maximum, beside the raw values they came from."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "raw": list(values),
    }


def interleaved(a: Measure, b: Measure, *, repeats: int, warmup: int = 1) -> dict[str, Any]:
    """Run ``a(i)`` and ``b(i)`` in turn; each returns a positive figure (seconds, tokens a second).

    The order within a pair alternates (AB, BA, AB …), so that neither always runs on the warmer machine.
    ``ratio`` is ``a / b`` of each pair: drift between pairs cancels out. Warm-up runs
    come first, with indices past ``repeats``.
    """
    for i in range(repeats, repeats + warmup):
        a(i)
        b(i)
    pairs = []
    for i in range(repeats):
        if i % 2 == 0:
            first = a(i)
            pairs.append((first, b(i)))
        else:
            second = b(i)
            pairs.append((a(i), second))
    return {
        "a": summary([x for x, _ in pairs]),
        "b": summary([y for _, y in pairs]),
        "ratio": summary([x / y for x, y in pairs]),
    }


def judged(name: str, value: float, aim: float, *, at_least: bool) -> dict[str, Any]:
    """A figure beside the aim that it was measured for."""
    met = value >= aim if at_least else value <= aim
    return {"name": name, "value": value, "aim": aim, "better": "higher" if at_least else "lower", "met": met}
