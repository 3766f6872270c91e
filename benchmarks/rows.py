"""Compares the cost of the target's forward pass and head by number of rows: our kernels and plain torch."""

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
"""The fastest of this many passes is one measurement, since other load on the machine only adds time."""


def measure(settings: Settings) -> dict[str, Any]:
    torch.set_num_threads(settings.threads)
    ours, plain = (_forward(settings, cpu_kernels) for cpu_kernels in (True, False))
    results: dict[str, Any] = {"unit": "seconds per forward pass, with 256 tokens in the KV cache"}
    for rows in ROWS:
        times = interleaved(
            partial(_quickest, plain, rows), partial(_quickest, ours, rows), repeats=settings.repeats
        )
        results[f"{rows} rows"] = {"torch": times["a"], "kernels": times["b"], "ratio": times["ratio"]}
    tree = interleaved(partial(_quickest, ours, 9), partial(_quickest, ours, 1), repeats=settings.repeats)
    results["tree of 8 nodes"] = tree
    gain = results["1 rows"]["ratio"]["median"]
    results["figures"] = [
        judged("time of one row, torch / our kernels", gain, 1.8, at_least=True),
        judged("time of a tree of 8 nodes / one row", tree["ratio"]["median"], 1.25, at_least=False),
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
