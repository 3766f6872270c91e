"""Computes metrics from answers: latencies, throughput, goodput and acceptance. Pure arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.load.stream import Answer

PERCENTILES = (50, 90, 95, 99)
_SUMMED = ("num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "num_spec_tokens")
_SUMMED_IF_THERE = ("visual_tokens", "draft_visual_tokens")


@dataclass(frozen=True, slots=True)
class Window:
    """All requests of one side at one concurrency, and the seconds that they took together.

    ``counted``: the increase of the server's speculation counters, if its answers do not report speculation.
    """

    seconds: float
    answers: list[Answer]
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is None]

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.output_tokens for answer in self.done) / self.seconds


def figures(windows: Sequence[Window], limits: dict[str, float]) -> dict[str, Any]:
    """Compute all metrics of one side at one point. Latencies are in seconds, over complete answers only."""
    answers = [answer for window in windows for answer in window.done]
    failures = [answer.error for window in windows for answer in window.answers if answer.error is not None]
    seconds = sum(window.seconds for window in windows)
    return {
        "requests": len(answers) + len(failures),
        "failed": len(failures),
        "errors": dict(Counter(failures)),
        "finish_reasons": dict(Counter(answer.finish_reason for answer in answers)),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "output_tokens": sum(answer.output_tokens for answer in answers),
        "tokens_per_second": sum(answer.output_tokens for answer in answers) / seconds,
        "requests_per_second": len(answers) / seconds,
        "ttft": distribution([a.ttft for a in answers if a.ttft is not None]),
        "itl": distribution([gap for a in answers for gap in a.gaps]),
        "tpot": distribution([a.tpot for a in answers if a.tpot is not None]),
        "e2e": distribution([a.latency for a in answers]),
        "goodput": goodput(windows, limits) if limits else None,
        "speculation": acceptance(
            [a.speculation for a in answers if a.speculation is not None]
            or [window.counted for window in windows if window.counted]
        ),
    }


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, percentiles (linearly interpolated) and maximum, or ``None`` if there are no values."""
    if not values:
        return None
    points = np.percentile(values, PERCENTILES)
    named = {f"p{percent}": float(point) for percent, point in zip(PERCENTILES, points, strict=True)}
    return {"mean": float(np.mean(values)), **named, "max": max(values)}


def goodput(windows: Sequence[Window], limits: dict[str, float]) -> dict[str, Any]:
    """Compute the requests per second that met every limit (in seconds).

    A failed request meets none. A latency that an answer does not have, such as the time per output token of
    a single token, meets its limit.
    """
    asked = [answer for window in windows for answer in window.answers]
    good = sum(answer.error is None and _within(answer, limits) for answer in asked)
    seconds = sum(window.seconds for window in windows)
    return {"limits": limits, "requests_per_second": good / seconds, "share": good / len(asked)}


def _within(answer: Answer, limits: dict[str, float]) -> bool:
    taken = {"ttft": answer.ttft, "tpot": answer.tpot, "e2e": answer.latency}
    return all((value := taken[name]) is None or value <= limit for name, limit in limits.items())


def acceptance(reports: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Sum up the speculation reports of answers or of windows; ``None`` if there are none.

    ``compressors``: the number of answers for which each branch compressed the draft's pictures.
    """
    if not reports:
        return None
    total: dict[str, Any] = {name: sum(report.get(name, 0) for report in reports) for name in _SUMMED}
    for name in _SUMMED_IF_THERE:
        there = [report[name] for report in reports if report.get(name) is not None]
        total[name] = sum(there) if there else None
    histogram: list[int] = []
    for report in reports:
        found = report.get("acceptance_histogram", [])
        histogram += [0] * (len(found) - len(histogram))
        for accepted, rounds in enumerate(found):
            histogram[accepted] += rounds
    used = Counter(report["compressor"] for report in reports if report.get("compressor"))
    return total | {"compressors": dict(used), "acceptance_histogram": histogram} | rates(total)


def rates(total: dict[str, Any]) -> dict[str, float | None]:
    """Return the tokens per round, including the bonus token, and the share of drafts accepted."""
    rounds, drafted = total["num_spec_steps"], total["num_draft_tokens"]
    accepted = total["num_accepted_draft_tokens"]
    return {
        "mean_acceptance_length": (accepted + rounds) / rounds if rounds else None,
        "draft_acceptance_rate": accepted / drafted if drafted else None,
    }
