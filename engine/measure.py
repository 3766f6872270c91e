"""Measures at start what forwards cost on this machine, and keeps the tables for the next start.

A few seconds the first time, nothing afterwards. Runs before any request, on KV pages that are free: their
content is worthless.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engine.attention import prepare
from engine.batch import Batch, Part, build_batch
from engine.budget import SpeculationBudget
from engine.cache_folder import cache_folder
from engine.config import EngineConfig
from engine.costs import CostTable, DraftCosts, load_tables, save_tables
from engine.draft_files import fingerprint
from engine.drafter import Drafter
from engine.eagle_drafter import EagleDrafter
from engine.kv_cache import KVCache
from engine.target import TargetModel

log = logging.getLogger(__name__)

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_CONTEXT = 256  # tokens in KV before the rows, where there is room for them
_REPEATS = 3
_LOOKUP_SECONDS = 2e-4  # of one sequence's drafts, until it is seen what they take

MakeBudget = Callable[[EngineConfig, TargetModel, KVCache, Drafter], SpeculationBudget]


def measured_budget(
    config: EngineConfig, target: TargetModel, cache: KVCache, drafter: Drafter
) -> SpeculationBudget:
    """The budget of ``drafter`` from what forwards cost here, measured over the free pages of ``cache``."""
    if isinstance(drafter, EagleDrafter):
        level = _draft_costs(config, target, drafter)
        costs = DraftCosts(extend=CostTable(level.points), level=level)
    else:
        costs = DraftCosts(CostTable({1: _LOOKUP_SECONDS, 64: 64 * _LOOKUP_SECONDS}))
    return SpeculationBudget(
        _target_costs(config, target, cache), costs, max_steps=config.speculative.num_steps
    )


def _target_costs(config: EngineConfig, target: TargetModel, cache: KVCache) -> CostTable:
    """Seconds of the target's forward, head included, against rows."""
    return _measured(config, "target", target, cache, forward_of(target, cache, config.page_size))


def forward_of(target: TargetModel, cache: KVCache, page_size: int) -> Callable[[int], None]:
    """Runs a forward of so many rows of one sequence, head included, and waits for it."""

    def run(rows: int) -> None:
        context = prepare(_batch(rows, cache, page_size, target.device), cache)
        target.logits(target.forward(context).hidden).argmax(dim=-1).cpu()

    return run


def _draft_costs(config: EngineConfig, target: TargetModel, drafter: EagleDrafter) -> CostTable:
    """Seconds of one level of drafting against rows, from embeddings to the best children."""
    model, cache, topk = drafter.model, drafter.cache, config.speculative.topk

    def run(rows: int) -> None:
        batch = _batch(rows, cache, config.page_size, target.device)
        features = torch.zeros(rows, model.feature_size, device=model.device, dtype=model.dtype)
        joined = model.join(model.fuse(features), target.embed(batch.token_ids))
        states = model.forward(prepare(batch, cache), joined)
        model.log_probs(states).topk(topk, dim=-1).values.cpu()

    return _measured(config, f"draft of {model.num_weights} weights, topk {topk}", target, cache, run)


def _measured(
    config: EngineConfig, what: str, target: TargetModel, cache: KVCache, run: Callable[[int], None]
) -> CostTable:
    path, key = cache_folder() / "costs.json", _key(config, what, target)
    table = load_tables(path).get(key)
    if table is not None:
        return table
    started = time.monotonic()
    room = cache.keys[0].shape[0]
    sizes = [rows for rows in ROWS if rows <= room]
    # All sizes in turn and not each three times in a row: what disturbs the machine then hits no size alone.
    rounds = [[_seconds(run, rows) for rows in sizes] for _ in range(_REPEATS)]
    table = CostTable(dict(zip(sizes, map(min, zip(*rounds, strict=True)), strict=True)))
    log.info("measured what a forward of the %s costs, in %.1f s", what, time.monotonic() - started)
    try:
        save_tables(path, {key: table})
    except OSError as error:
        log.warning("the cost tables could not be kept at %s: %s", path, error)
    return table


def _seconds(run: Callable[[int], None], rows: int) -> float:
    started = time.perf_counter()
    run(rows)
    return time.perf_counter() - started


def _batch(rows: int, cache: KVCache, page_size: int, device: torch.device) -> Batch:
    room = cache.keys[0].shape[0]
    first = _CONTEXT if _CONTEXT + rows <= room else 0
    pages = range(-(-(first + rows) // page_size))
    positions = np.arange(first, first + rows, dtype=np.int64)
    return build_batch([Part(np.zeros(rows, np.int64), positions, pages, first)], page_size, device)


def _key(config: EngineConfig, what: str, target: TargetModel) -> str:
    """Names everything that a forward's time depends on, as far as can be known."""
    if target.device.type == "cuda":
        machine = torch.cuda.get_device_name(target.device)
    else:
        machine = f"{_cpu_name()} x{torch.get_num_threads()}"
    own = "" if target.attention is None else f" {type(target.attention).__name__}"
    folder = Path(config.model)
    model = fingerprint(folder) if folder.is_dir() else f"{config.model}@{config.revision}"
    return f"{machine} | torch {torch.__version__} | {model} {target.dtype}{own} | {what}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
