"""Draft trees grown by a chain of CUDA graphs, one per level and number of sequences.

Each graph reads what the previous one left in fixed memory, so that between the roots and the last level the
host only launches graphs. What :meth:`EagleDrafter._level_by_level` plans on the host is computed on the
device.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.attention import AttentionContext
from engine.draft.levels import (
    Frontier,
    Grown,
    Ints,
    Level,
    children,
    first_level,
    next_frontier,
    repeated,
    to_host,
)
from engine.draft.model import DraftModel
from engine.graphs import Capture, fixed_context
from engine.kernels.tiles import ANY_LENGTH, Seen
from engine.kv_cache import KVCache
from engine.transfer import to_device

log = logging.getLogger(__name__)

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)

_NO_ROOT = -1  # start of a padding tree


@dataclass(slots=True, frozen=True)
class Trees:
    """The starting points of S trees.

    On the device: ``states`` ``[S, hidden]``. On the host: ``limits`` int64 ``[S]``: children per node;
    ``starts`` int64 ``[S]``: the logical slot of node 0; ``table`` int64 ``[S, pages]``; ``positions`` int64
    ``[levels that run, S]`` or ``[3, levels that run, S]``.
    """

    states: Tensor
    limits: Ints
    starts: Ints
    table: Ints
    positions: Ints


@dataclass(slots=True)
class _Chain:
    """The graphs for one number of sequences: what runs each level, and the levels that they write."""

    replays: list[Callable[[], None]]
    levels: list[Level]


@dataclass(slots=True)
class _LevelTiles:
    """The tiles of the frontier's rows for the attention kernel, from tensors computed on the device."""

    tiles: Tensor
    limit: Tensor
    masks: Tensor
    longest: int = ANY_LENGTH

    @property
    def busy(self) -> int:
        return len(self.tiles)

    def visible(self, window: int | None) -> Seen:
        if window is not None:
            raise RuntimeError("sliding windows are not supported for a tree that is partly in KV")
        return Seen(torch.zeros_like(self.limit), self.masks)


class LevelGraphs:
    """Captures and replays the graphs that grow draft trees.

    ``embed`` returns the target's embeddings ``[N, hidden]`` of token ids ``[N]``. ``axes``: the number of
    position axes. ``num_steps``: the maximum depth; ``topk``: the exact width.
    """

    def __init__(
        self,
        model: DraftModel,
        cache: KVCache,
        embed: Callable[[Tensor], Tensor],
        capture: Capture,
        *,
        max_num_seqs: int,
        max_pages: int,
        axes: int,
        num_steps: int,
        topk: int,
    ) -> None:
        self._model, self._cache, self._embed, self._capture = model, cache, embed, capture
        self._num_steps, self._topk = num_steps, topk
        self.most = next((n for n in SEQUENCES if n >= max_num_seqs), SEQUENCES[-1])
        self._sizes = [n for n in SEQUENCES if n <= self.most]
        most, device = self.most, cache.device
        self._states = torch.zeros(most, model.state_size, dtype=model.dtype, device=device)
        self._starts = torch.full((most,), _NO_ROOT, device=device)
        self._limits = torch.full((most,), topk, device=device)
        self._table = torch.zeros(most, max_pages, dtype=torch.int64, device=device)
        shape = (num_steps, most) if axes == 1 else (axes, num_steps, most)
        self._positions = torch.zeros(shape, dtype=torch.int64, device=device)
        self._chains: dict[int, _Chain] = {}

    def prepare(self) -> None:
        started = time.monotonic()
        for size in reversed(self._sizes):
            self._chains[size] = self._chain(size)
        log.info("captured the levels of a draft as CUDA graphs in %.1f s", time.monotonic() - started)

    def takes(self, trees: Trees, num_steps: int, topk: int) -> bool:
        """Whether there are graphs for such trees."""
        few = len(trees.starts) <= self.most and trees.table.shape[1] <= self._table.shape[1]
        return few and num_steps <= self._num_steps and topk == self._topk

    @torch.inference_mode()
    def grow(self, trees: Trees, num_steps: int) -> Grown:
        """Grow the trees. Costs one copy to the device, one launch per level and one copy to the host."""
        count, pages = trees.table.shape
        size = next(n for n in self._sizes if n >= count)
        integers = (trees.starts, trees.limits, trees.table, trees.positions)
        starts, limits, table, positions = to_device(integers, self._cache.device)
        self._states[:count] = trees.states
        self._starts[:count] = starts
        self._starts[count:size] = _NO_ROOT
        self._limits[:count] = limits
        self._table[:count, :pages] = table
        self._positions[..., : positions.shape[-2], :count] = positions
        return self._replayed(size, count, num_steps)

    @torch.inference_mode()
    def pretend(self, count: int) -> None:
        """Grow two levels of ``count`` padding trees, at most ``most``, to measure the time of real ones."""
        size = next(n for n in self._sizes if n >= count)
        self._starts.fill_(_NO_ROOT)
        self._replayed(size, size, 2)

    def _replayed(self, size: int, count: int, num_steps: int) -> Grown:
        chain = self._chains[size]
        for replay in chain.replays[:num_steps]:
            replay()
        return to_host(chain.levels[:num_steps], count)

    @torch.inference_mode()
    def _chain(self, size: int) -> _Chain:
        self._starts.fill_(_NO_ROOT)

        def roots() -> Seq[Tensor]:
            levels, frontier = first_level(self._model, self._states[:size], self._topk, self._limits[:size])
            return *levels[0], *frontier

        results, replay = self._capture(roots)
        chain = _Chain([replay], [Level(*results[:3])])
        frontier = Frontier(*results[3:])
        for run in range(1, self._num_steps):
            results, replay = self._capture(partial(self._level, frontier, chain.levels[:], run, size))
            chain.replays.append(replay)
            chain.levels.append(Level(*results[:3]))
            frontier = Frontier(*results[3:]) if run + 1 < self._num_steps else frontier
        return chain

    def _level(self, frontier: Frontier, levels: Seq[Level], run: int, size: int) -> Seq[Tensor]:
        """Run one level; return it and, unless it is the last, the frontier after it."""
        joined = self._model.join(frontier.states.flatten(0, 1), self._embed(frontier.token_ids.flatten()))
        out = self._model.run(self._context(frontier, run, size), joined)
        out = out.unflatten(0, (size, -1))
        found = children(self._model, frontier, out, self._limits[:size])
        if run + 1 == self._num_steps:
            return found
        return *found, *next_frontier(frontier, out, [*levels, found], run)

    def _context(self, frontier: Frontier, run: int, size: int) -> AttentionContext:
        """Return the attention context of the ``run``-th level of each tree.

        Rows of padding trees write into the spare slot and attend to nothing.
        """
        page_size, width = self._cache.page_size, frontier.token_ids.shape[1]
        table, starts = self._table[:size], self._starts[:size]
        is_real, first = starts != _NO_ROOT, starts.clamp(min=0)
        end = torch.where(is_real, first + run * width, 0)
        logical = first[:, None] + torch.arange((run - 1) * width, run * width, device=starts.device)
        slots = table.gather(1, logical // page_size) * page_size + logical % page_size
        slots = torch.where(is_real[:, None], slots, self._cache.num_slots).flatten()
        positions = repeated(self._positions[..., run - 1, :size], width)

        def cut(rows_per_tile: int) -> _LevelTiles:
            firsts = torch.arange(0, width, rows_per_tile, device=starts.device).repeat(size)
            count = len(firsts) // size
            sequence = repeated(torch.arange(size, device=starts.device), count)
            rows = (width - firsts).clamp(max=rows_per_tile)
            columns = [
                sequence,
                sequence * width + firsts,
                rows,
                repeated(first, count),
                repeated(end, count),
            ]
            return _LevelTiles(
                torch.stack(columns, dim=1), repeated(first, width), frontier.masks.flatten().contiguous()
            )

        return fixed_context(self._cache, slots, positions, table, width, cut)
