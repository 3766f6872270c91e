"""Measures at start what forwards cost on this machine, and keeps the tables for the next start.

A few seconds the first time, nothing afterwards: what a run learned since then is kept when it ends. Runs
before any request, on KV pages that are free: their content is worthless.
"""

from __future__ import annotations

import logging
import platform
import time
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
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
from engine.packing import PackedLinear
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
    """The budget of ``drafter`` from what forwards cost here, measured over the free pages of ``cache``. Its
    tables go to disk when it goes.
    """
    tables = _Tables(config, target, cache)
    # Seconds of the target's forward, head included, against rows.
    own = tables.get("target", forward_of(target, cache, config.page_size))
    if isinstance(drafter, EagleDrafter):
        costs = _draft_costs(config, target, drafter, tables)
    else:
        costs = DraftCosts(CostTable({1: _LOOKUP_SECONDS, 64: 64 * _LOOKUP_SECONDS}))
    budget = SpeculationBudget(own, costs, max_steps=config.speculative.num_steps)
    weakref.finalize(budget, _keep, tables.path, tables.used)
    return budget


def forward_of(target: TargetModel, cache: KVCache, page_size: int) -> Callable[[int], None]:
    """Runs a forward of so many rows of one sequence, head included, and waits for it."""

    def run(rows: int) -> None:
        context = prepare(_batch(rows, cache, page_size, target.device), cache)
        target.logits(target.forward(context).hidden).argmax(dim=-1).cpu()

    return run


def _draft_costs(
    config: EngineConfig, target: TargetModel, drafter: EagleDrafter, tables: _Tables
) -> DraftCosts:
    """Seconds of one level of drafting against rows, from embeddings to the best children. The first level
    is learned apart: its rows are those of accepted tokens.
    """
    model, cache, topk = drafter.model, drafter.cache, config.speculative.topk

    def run(rows: int) -> None:
        batch = _batch(rows, cache, config.page_size, target.device)
        features = torch.zeros(rows, model.feature_size, device=model.device, dtype=model.dtype)
        joined = model.join(model.fuse(features), target.embed(batch.token_ids))
        states = model.forward(prepare(batch, cache), joined)
        model.log_probs(states).topk(topk, dim=-1).values.cpu()

    what = f"draft of {model.num_weights} weights, topk {topk}"
    level = tables.get(what, run)
    return DraftCosts(extend=tables.get(f"{what}, first level", run, like=level), level=level)


class _Tables:
    """Those of an earlier start, else measured now. ``used``: by key, all that were asked for."""

    def __init__(self, config: EngineConfig, target: TargetModel, cache: KVCache) -> None:
        self.path = cache_folder() / "costs.json"
        self.used: dict[str, CostTable] = {}
        self._found = load_tables(self.path)
        self._key, self._room = _key(config, target), cache.keys[0].shape[0]

    def get(self, what: str, run: Callable[[int], None], like: CostTable | None = None) -> CostTable:
        """``run`` does what costs; ``like``: measured a moment ago, and as good."""
        key = f"{self._key} | {what}"
        table = self._found.get(key)
        if table is None:
            table = self._measured(what, run) if like is None else CostTable(like.points)
            _keep(self.path, {key: table})
        self.used[key] = table
        return table

    def _measured(self, what: str, run: Callable[[int], None]) -> CostTable:
        started = time.monotonic()
        sizes = [rows for rows in ROWS if rows <= self._room]
        # All sizes in turn and not each three times in a row: what disturbs the machine hits no size alone.
        rounds = [[_seconds(run, rows) for rows in sizes] for _ in range(_REPEATS)]
        best = np.array(rounds).min(axis=0)
        # What more rows took is enough for fewer: those were disturbed. A processor on which that is not so
        # is learned from what runs.
        never_falling = np.minimum.accumulate(best[::-1])[::-1]
        log.info("measured what a forward of the %s costs, in %.1f s", what, time.monotonic() - started)
        return CostTable(dict(zip(sizes, never_falling.tolist(), strict=True)))


def _keep(path: Path, tables: Mapping[str, CostTable]) -> None:
    try:
        save_tables(path, tables)
    except OSError as error:
        log.warning("the cost tables could not be kept at %s: %s", path, error)


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


def _key(config: EngineConfig, target: TargetModel) -> str:
    """Names everything that a forward's time depends on, as far as can be known."""
    if target.device.type == "cuda":
        machine = torch.cuda.get_device_name(target.device)
    else:
        machine = f"{_cpu_name()} x{torch.get_num_threads()}"
    folder = Path(config.model)
    model = fingerprint(folder) if folder.is_dir() else f"{config.model}@{config.revision}"
    own = f"specvlm {_own_version()} {_products(target)}"
    if target.attention is not None:
        own += f" {type(target.attention).__name__}"
    return f"{machine} | torch {torch.__version__} | {own} | {model} {target.dtype}"


def _products(target: TargetModel) -> str:
    """Who computes them."""
    if target.kernels is not None:
        return target.kernels.build
    modules = (*target.adapter.text_model.modules(), target.head_of(None))
    return "packed" if any(isinstance(module, PackedLinear) for module in modules) else "plain"


def _own_version() -> str:
    try:
        return version("specvlm")
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
