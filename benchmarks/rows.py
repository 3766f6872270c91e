"""What a forward of the target costs, head included, by rows: with our kernels and in plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import interleaved, judged
from engine.config import EngineConfig
from engine.kv_cache import KVCache
from engine.speculation.measure import ROWS, forward_of
from engine.target import TargetModel

PAGE_SIZE, NUM_PAGES = 16, 32
FORWARDS = 5
"""The quickest of so many counts as one measurement: other work on the machine only ever adds."""


def measure(settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    ours, plain = (_forward(settings, cpu_kernels) for cpu_kernels in (True, False))
    results: dict[str, Any] = {"unit": "seconds of a forward, 256 tokens in KV before the rows"}
    for rows in ROWS:
        times = interleaved(
            partial(_quickest, plain, rows), partial(_quickest, ours, rows), repeats=settings.repeats
        )
        results[f"{rows} rows"] = {"torch": times["a"], "kernels": times["b"], "ratio": times["ratio"]}
    tree = interleaved(partial(_quickest, ours, 9), partial(_quickest, ours, 1), repeats=settings.repeats)
    results["tree of 8 nodes"] = tree
    gain = results["1 rows"]["ratio"]["median"]
    results["figures"] = [
        judged("one row, torch over kernels", gain, 1.8, at_least=True),
        judged("tree of 8 nodes over one row", tree["ratio"]["median"], 1.25, at_least=False),
    ]
    return results


def _forward(settings: Settings, cpu_kernels: bool) -> Callable[[int], None]:
    config = EngineConfig(
        model=settings.model, device="cpu", dtype="float32", page_size=PAGE_SIZE, cpu_kernels=cpu_kernels
    )
    target = TargetModel.load(config)
    cache = KVCache(target.kv_shape, NUM_PAGES, PAGE_SIZE, target.device, target.attention)
    return forward_of(target, cache, PAGE_SIZE)


def _quickest(forward: Callable[[int], None], rows: int, index: int) -> float:  # noqa: ARG001 (all are alike)
    times = []
    for _ in range(FORWARDS):
        started = time.perf_counter()
        forward(rows)
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    run_measurement(measure)
