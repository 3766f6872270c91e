"""Measures the time from starting ``specvlm serve`` to the first 200 from ``/ready``; page cache warm."""

from __future__ import annotations

from typing import Any

from benchmarks.own_server import own_server
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged, summary


def measure(settings: Settings) -> dict[str, Any]:
    first = _start_once(settings)
    warm = summary([_start_once(settings) for _ in range(max(3, settings.repeats // 2))])
    return {
        "unit": "seconds",
        "first": first,
        "warm": warm,
        "figures": [judged("seconds from start to /ready", warm["median"], 10.0, at_least=False)],
    }


def _start_once(settings: Settings) -> float:
    with own_server(["--model", settings.model]) as server:
        return server.seconds


if __name__ == "__main__":
    run_measurement(measure)
