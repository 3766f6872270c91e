"""Builds the printed document from windows: metrics and raw timings of a side, comparisons, averages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from benchmarks.load.metrics import Window, figures
from benchmarks.load.stream import Answer
from benchmarks.load.targets import Target

DIGITS = 6


def side_document(windows: Sequence[Window], limits: dict[str, float]) -> dict[str, Any]:
    return figures(windows, limits) | {"windows": [_raw(window) for window in windows]}


def _raw(window: Window) -> dict[str, Any]:
    first = min(answer.start for answer in window.answers)
    return {
        "seconds": round(window.seconds, DIGITS),
        "answers": [_raw_answer(answer, first) for answer in window.answers],
    }


def _raw_answer(answer: Answer, first: float) -> dict[str, Any]:
    """Return an answer's raw timings, in seconds.

    ``start``: since the window's first request. ``times``: when chunks with text arrived, since ``start``.
    """
    return {
        "start": round(answer.start - first, DIGITS),
        "latency": round(answer.latency, DIGITS),
        "times": [round(time, DIGITS) for time in answer.times],
        "prompt_tokens": answer.prompt_tokens,
        "output_tokens": answer.output_tokens,
        "finish_reason": answer.finish_reason,
        "speculation": answer.speculation,
        "error": answer.error,
    }


def comparison(ratio: dict[str, Any], a: Sequence[Window], b: Sequence[Window]) -> dict[str, Any]:
    """Compare two sides.

    ``speed_up``: tokens per second of the first side divided by those of the second, by pairs of windows.
    ``same_answers``: how many of the ``answers`` that both sides gave have the same text.
    """
    pairs = [
        (one.text, other.text)
        for left, right in zip(a, b, strict=True)
        for one, other in zip(left.answers, right.answers, strict=True)
        if one.error is None and other.error is None
    ]
    return {"speed_up": ratio, "answers": len(pairs), "same_answers": sum(x == y for x, y in pairs)}


def averages(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Average over the data sets with equal weights, as in the paper's tables; empty if there is only one."""

    def key(point: dict[str, Any]) -> tuple[float, int]:
        return point["temperature"], point["concurrency"]

    found = []
    for (temperature, concurrency), group in groupby(sorted(points, key=key), key):
        same = list(group)
        if len(same) < 2:
            continue
        compared = [point["comparison"] for point in same if point["comparison"]]
        found.append(
            {
                "temperature": temperature,
                "concurrency": concurrency,
                "data_sets": len(same),
                "speed_up": statistics.fmean(c["speed_up"]["median"] for c in compared) if compared else None,
                "mean_acceptance_length": {
                    label: _mean_length([point["sides"][label] for point in same])
                    for label in same[0]["sides"]
                },
            }
        )
    return found


def _mean_length(sides: Sequence[dict[str, Any]]) -> float | None:
    lengths: list[Any] = [(side["speculation"] or {}).get("mean_acceptance_length") for side in sides]
    return None if None in lengths else statistics.fmean(lengths)


def warnings_of(targets: Sequence[Target], busy: str | None) -> list[str]:
    """Return warnings that a reader of the results needs to know."""
    found = [busy] if busy else []
    found += [
        f"{target.label}: the server does not accept cache_salt, so repeated questions may hit its cache"
        for target in targets
        if not target.salted
    ]
    return found
