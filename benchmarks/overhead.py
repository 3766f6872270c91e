"""Measures the share of a decoding step outside the model: scheduling, batch building, sampling, reporting.

The model's share is the time in its forward pass and head. CPU only, as a GPU runs them asynchronously.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged, summary
from benchmarks.workload import chat, picture, question


class Stopwatch:
    """Adds up the time spent in the methods it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*arguments, **keywords)
            finally:
                self.seconds += time.perf_counter() - start

        setattr(owner, name, timed)


def measure(settings: Settings) -> dict[str, Any]:
    assert not torch.cuda.is_available(), "this measurement is for CPUs only"
    ours, model = Ours(settings, draft="none"), Stopwatch()  # plain decoding: one token per stream and step
    for name in ("forward", "logits"):
        model.wrap(ours.target, name)
    results = {streams: _shares(ours, model, streams, settings) for streams in (1, 8)}
    return {
        "unit": "share of a decoding step spent outside the model's forward pass and head",
        "one_stream": summary(results[1]),
        "eight_streams": summary(results[8]),
        "figures": [
            judged("time outside the model, 1 stream", summary(results[1])["median"], 0.05, at_least=False),
            judged("time outside the model, 8 streams", summary(results[8])["median"], 0.05, at_least=False),
        ],
    }


def _shares(ours: Ours, model: Stopwatch, streams: int, settings: Settings) -> list[float]:
    """Return the share for each step in which every stream decodes."""
    shares = []

    def step() -> Any:
        model.seconds = 0.0
        start = time.perf_counter()
        report = ours.core.step()
        seconds = time.perf_counter() - start
        if report.num_tokens == streams == len(report.outputs):
            shares.append(1.0 - model.seconds / seconds)
        return report

    prompts = [chat(picture(settings.seed + i), question(i)) for i in range(streams)]
    ours.run(prompts, settings.num_tokens, step=step)
    return shares[2:]


if __name__ == "__main__":
    run_measurement(measure)
