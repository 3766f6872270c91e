"""Measures the cost of forward passes on this machine at startup, and stores the tables for the next start.

This takes a few seconds the first time, and later a fraction of a second to check that the tables are still
valid. What is learned while serving is not stored: it may be from a busy hour, and costs that rule out
drafting would then be believed forever. Runs before any request, on free KV pages, whose content does not
matter.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from engine.attention import prepare
from engine.batch import Batch, Part, build_batch
from engine.config import EngineConfig
from engine.draft.base import Drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.files import fingerprint
from engine.host.cache_folder import cache_folder
from engine.kernels.grow import Roots
from engine.kernels.onednn import OnednnLinear
from engine.kv_cache import KVCache
from engine.speculation.budget import SpeculationBudget
from engine.speculation.costs import CostTable, DraftCosts, load_tables, save_tables
from engine.target import TargetModel

log = logging.getLogger(__name__)

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MORE_ROWS = (128, 256, 512, 640)  # steps on a GPU are larger; the last one has more rows than any graph
_CONTEXT = 256  # tokens in KV before the rows, if there is room for them
_REPEATS = 3
_CHECKED_ROWS, _CHECKS = 8, 6
_TOLERATED = 1.3  # maximum factor by which a stored table's cost ratio of 8 rows to one may be off
_LOOKUP_SECONDS = 2e-4  # initial estimate of the look-up time per sequence

MakeBudget = Callable[[EngineConfig, TargetModel, KVCache, Drafter], SpeculationBudget]


def measured_budget(
    config: EngineConfig, target: TargetModel, cache: KVCache, drafter: Drafter
) -> SpeculationBudget:
    """Create the budget of ``drafter`` from costs measured on this machine over free pages of ``cache``."""
    tables = _Tables(config, target, cache)
    # Seconds of the target's forward pass, including the head, by number of rows.
    own = tables.get("target", forward_of(target, cache, config.page_size))
    if isinstance(drafter, EagleDrafter):
        costs = _draft_costs(config, target, drafter, tables)
    else:
        costs = DraftCosts(CostTable({1: _LOOKUP_SECONDS, 64: 64 * _LOOKUP_SECONDS}))
    return SpeculationBudget(own, costs, max_steps=config.speculative.num_steps)


def forward_of(target: TargetModel, cache: KVCache, page_size: int) -> Callable[[int], None]:
    """Return a function that runs a forward pass of the given number of rows, including the head."""

    def run(rows: int) -> None:
        context = prepare(_batch(rows, cache, page_size, target.device), cache)
        target.logits(target.forward(context).hidden).argmax(dim=-1).cpu()

    return run


def _draft_costs(
    config: EngineConfig, target: TargetModel, drafter: EagleDrafter, tables: _Tables
) -> DraftCosts:
    """Measure the seconds of one level of drafting by rows, from embeddings to the best children.

    The cost of the first level is learned separately: its rows are those of accepted tokens.
    """
    model, cache, topk = drafter.model, drafter.cache, config.speculative.topk

    def run(rows: int) -> None:
        batch = _batch(rows, cache, config.page_size, target.device)
        features = torch.zeros(rows, model.feature_size, device=model.device, dtype=model.dtype)
        joined = model.join(model.fuse(features), target.embed(batch.token_ids))
        states = model.forward(prepare(batch, cache), joined)
        model.log_probs(states).topk(topk, dim=-1).values.cpu()

    def grow(rows: int) -> None:
        """Grow a level in one kernel call, which includes a small first level, that of one root."""
        assert model.grower is not None
        first = _CONTEXT if _CONTEXT + rows <= cache.num_slots else 0
        roots = Roots(
            torch.zeros(1, model.feature_size),
            limits=np.array([rows]),
            starts=np.array([first]),
            table=np.arange(first + rows)[None],
        )
        angles = model.angles(torch.tensor([first + 1]))
        width = min(rows, model.grower.num_outputs)
        model.grower.grow(roots, angles, (cache.keys[0], cache.values[0]), width, levels=2)

    def replay(rows: int) -> None:
        count = -(-rows // topk)
        if drafter.graphs is not None and count <= drafter.graphs.most:
            drafter.graphs.pretend(count)
        else:
            run(rows)

    what = f"draft of {model.num_weights} weights, topk {topk}"
    what += "" if drafter.graphs is None else ", graphs"
    level = tables.get(what, replay if model.grower is None else grow)
    return DraftCosts(extend=CostTable(level.points), level=level)


class _Tables:
    """Cost tables, stored by an earlier start if they are still valid, otherwise measured now."""

    def __init__(self, config: EngineConfig, target: TargetModel, cache: KVCache) -> None:
        self._path = cache_folder() / "costs.json"
        self._found = load_tables(self._path)
        self._key, self._room = _key(config, target), cache.num_slots
        sizes = ROWS if target.device.type == "cpu" else ROWS + _MORE_ROWS
        self._sizes = [rows for rows in sizes if rows <= self._room]

    def get(self, what: str, run: Callable[[int], None]) -> CostTable:
        """Return the cost table of ``run``, the function to be timed."""
        key = f"{self._key} | {what}"
        found = self._found.get(key)
        fits = found is not None and list(found.points) == self._sizes
        table = self._checked(found, run) if found is not None and fits else None
        if table is None:
            table = self._measured(what, run)
            self._keep(key, table)
        return table

    def _checked(self, table: CostTable, run: Callable[[int], None]) -> CostTable | None:
        """Return the table scaled to the machine's current speed; ``None`` if its shape no longer fits."""
        rows = min(_CHECKED_ROWS, self._room)
        few, many = _best(run, [1, rows], _CHECKS)
        speed = few / table.seconds(1)
        if not 1 / _TOLERATED < many / table.seconds(rows) / speed < _TOLERATED:
            return None
        return CostTable({point: seconds * speed for point, seconds in table.points.items()})

    def _measured(self, what: str, run: Callable[[int], None]) -> CostTable:
        started = time.monotonic()
        best = _best(run, self._sizes, _REPEATS)
        # If more rows took less time, the measurement of fewer rows was disturbed. On a processor where that
        # is not so, the real costs are learned at run time.
        never_falling = np.minimum.accumulate(best[::-1])[::-1]
        log.info("measured the cost of a forward pass of the %s in %.1f s", what, time.monotonic() - started)
        return CostTable(dict(zip(self._sizes, never_falling.tolist(), strict=True)))

    def _keep(self, key: str, table: CostTable) -> None:
        try:
            save_tables(self._path, {key: table})
        except OSError as error:
            log.warning("the cost tables could not be stored at %s: %s", self._path, error)


def _best(run: Callable[[int], None], sizes: list[int], repeats: int) -> np.ndarray:
    """Return the best seconds of each size. Sizes take turns, so that a disturbance does not hit just one."""
    best: np.ndarray = np.array([[_seconds(run, n) for n in sizes] for _ in range(repeats)]).min(axis=0)
    return best


def _seconds(run: Callable[[int], None], rows: int) -> float:
    started = time.perf_counter()
    run(rows)
    return time.perf_counter() - started


def _batch(rows: int, cache: KVCache, page_size: int, device: torch.device) -> Batch:
    first = _CONTEXT if _CONTEXT + rows <= cache.num_slots else 0
    pages = range(-(-(first + rows) // page_size))
    positions = np.arange(first, first + rows, dtype=np.int64)
    return build_batch([Part(np.zeros(rows, np.int64), positions, pages, first)], page_size, device)


def _key(config: EngineConfig, target: TargetModel) -> str:
    """Return a key of everything that the time of a forward pass depends on, as far as it can be known."""
    if target.device.type == "cuda":
        machine = torch.cuda.get_device_name(target.device)
    else:
        machine = f"{_cpu_name()} x{target.num_threads}"
    folder = Path(config.model)
    model = fingerprint(folder) if folder.is_dir() else f"{config.model}@{config.revision}"
    own = f"specvlm {_own_version()} {_products(target)}"
    if target.attention is not None:
        own += f" {type(target.attention).__name__}"
    if target.has_graphs:
        own += " graphs"
    return f"{machine} | torch {torch.__version__} | {own} | {model} {target.dtype}"


def _products(target: TargetModel) -> str:
    """Return what computes matrix products: the kernels' build, packed or plain linear layers."""
    if target.kernels is not None:
        return target.kernels.build
    modules = (*target.adapter.text_model.modules(), target.head_of(None))
    return "packed" if any(isinstance(module, OnednnLinear) for module in modules) else "plain"


def _own_version() -> str:
    try:
        return version("specvlm")
    except PackageNotFoundError:  # running from a checkout that is not installed
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
