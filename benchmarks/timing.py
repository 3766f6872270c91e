"""Compares two measurements by interleaving them, since the speed of a machine drifts within minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Measure = Callable[[int], float]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return minimum, median and maximum, together with the raw values."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "raw": list(values),
    }


def interleaved(a: Measure, b: Measure, *, repeats: int, warmup: int = 1) -> dict[str, Any]:
    """Run ``a(i)`` and ``b(i)`` in turn; each returns a positive figure (seconds, tokens per second).

    The order within a pair alternates (AB, BA, AB …), so that neither always runs on the warmer machine.
    ``ratio`` is ``a / b`` for each pair, so that drift between pairs cancels out. Warm-up runs come first,
    with indices from ``repeats`` on.
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
    """Describe a result together with its goal ``aim``, and whether that is met."""
    met = value >= aim if at_least else value <= aim
    return {"name": name, "value": value, "aim": aim, "better": "higher" if at_least else "lower", "met": met}
