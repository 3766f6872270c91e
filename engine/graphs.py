"""CUDA graphs: what is launched again and again, launched as one.

A small step is hundreds of kernels of a few microseconds each, which Python launches slower than a GPU runs
them. A graph replays them from fixed memory: what differs from step to step is copied there first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from engine.attention import AttentionContext
from engine.batch import Batch
from engine.kernels.tiles import FixedTiles, Tiling
from engine.kv_cache import KVCache

log = logging.getLogger(__name__)

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Rows of a step are padded to the next of these; one with more is not worth a graph."""

Run = Callable[[], Seq[Tensor]]
T = TypeVar("T")


class Capture(Protocol):
    """Makes a run repeatable: what it returns, and what runs it again, with results in the same memory."""

    def __call__(self, run: Run) -> tuple[Seq[Tensor], Callable[[], None]]: ...


class CudaCapture:
    """Graphs that share the memory for what lies between inputs and results. A replay may overwrite the
    results of every graph that was captured later: read them first.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, run: Run) -> tuple[Seq[Tensor], Callable[[], None]]:
        """Runs once before, for what is compiled or allocated at the first use."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        graph = torch.cuda.CUDAGraph()
        how: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            # A capture that fails leaves its stream the current one.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, **how):
                results = run()
        except Exception:
            self._pool = torch.cuda.graph_pool_handle()  # what is in the old one is not to be relied on
            raise
        graph.replay()  # what the next capture reads must not be memory that nothing has written
        return results, graph.replay


@dataclass(slots=True)
class _Captured:
    """A forward of ``rows`` rows from fixed memory."""

    rows: int
    tiles: dict[int, FixedTiles]
    results: Seq[Tensor]
    replay: Callable[[], None]


@dataclass(slots=True)
class RowGraphs:
    """Forwards of rows over one KV cache. ``run`` takes inputs ``[N, width]`` and a context, and gives
    tensors whose first dimension is N; no row may depend on others but by attention. ``max_pages``: of a
    sequence; ``axes``: of positions.
    """

    run: Callable[[Tensor, AttentionContext], Seq[Tensor]]
    cache: KVCache
    max_pages: int
    axes: int
    width: int
    dtype: torch.dtype
    capture: Capture
    _inputs: Tensor = field(init=False)
    _slots: Tensor = field(init=False)
    _table: Tensor = field(init=False)
    _positions: Tensor = field(init=False)
    _captured: dict[tuple[int, bool], _Captured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        device, rows = self.cache.device, ROWS[-1]
        self._inputs = torch.zeros(rows, self.width, dtype=self.dtype, device=device)
        self._slots = torch.full((rows,), self.cache.num_slots, device=device)
        self._table = torch.zeros(rows, self.max_pages, dtype=torch.int64, device=device)
        shape = (rows,) if self.axes == 1 else (self.axes, rows)
        self._positions = torch.zeros(shape, dtype=torch.int64, device=device)

    def prepare(self, max_num_seqs: int) -> None:
        """Capture all sizes, largest first: the smaller ones fit into their memory."""
        started = time.monotonic()
        most_single = next((rows for rows in ROWS if rows >= max_num_seqs), ROWS[-1])
        for rows in reversed(ROWS):
            self._captured[rows, False] = self._make(rows, single=False)
            if rows <= most_single:
                self._captured[rows, True] = self._make(rows, single=True)
        log.info("captured %d CUDA graphs in %.1f s", len(self._captured), time.monotonic() - started)

    @torch.inference_mode()
    def forward(self, context: AttentionContext, inputs: Tensor) -> Seq[Tensor] | None:
        """What ``run`` gives; ``None`` for a row that is not for graphs."""
        batch = context.batch
        fits = batch.num_rows <= ROWS[-1] and batch.page_table.shape[1] <= self.max_pages
        if context.cache is not self.cache or batch.visible_ends is not None or not fits:
            return None
        rows = next(rows for rows in ROWS if rows >= batch.num_rows)
        many = self._captured[rows, False]
        single = batch.num_rows == batch.num_sequences
        captured = self._captured.get((rows, True), many) if single else many
        self._load(captured, batch, inputs)
        captured.replay()
        # The next step overwrites them.
        return [result[: batch.num_rows].clone() for result in captured.results]

    def _load(self, captured: _Captured, batch: Batch, inputs: Tensor) -> None:
        """Rows behind the batch's write into the spare slot and are read by none."""
        count, (sequences, pages) = batch.num_rows, batch.page_table.shape
        self._inputs[:count] = inputs
        self._slots[:count] = batch.slots
        self._slots[count : captured.rows] = self.cache.num_slots
        self._positions[..., :count] = batch.positions
        self._table[:sequences, :pages] = batch.page_table
        for tiles in captured.tiles.values():
            tiles.load(batch)

    @torch.inference_mode()
    def _make(self, rows: int, *, single: bool) -> _Captured:
        """``single``: each row is of a sequence of its own, for which tiles are smaller."""
        device = self.cache.device
        tiles: dict[int, FixedTiles] = {}

        def cut(rows_per_tile: int) -> FixedTiles:
            if rows_per_tile not in tiles:  # at the run before the capture
                busy = rows if single else -(-rows // rows_per_tile)
                tiles[rows_per_tile] = FixedTiles.room(rows, rows_per_tile, busy, device)
            return tiles[rows_per_tile]

        where = self._slots[:rows], self._positions[..., :rows], self._table[:rows]
        context = fixed_context(self.cache, *where, 1 if single else rows, cut)
        self._slots.fill_(self.cache.num_slots)
        results, replay = self.capture(lambda: self.run(self._inputs[:rows], context))
        return _Captured(rows, tiles, results, replay)


def fixed_context(
    cache: KVCache,
    slots: Tensor,
    positions: Tensor,
    table: Tensor,
    most_rows: int,
    cut: Callable[[int], Tiling],
) -> AttentionContext:
    """Of rows that are described in fixed memory, by ``cut`` for Triton's kernel: see ``TritonSpans``."""
    from engine.kernels.triton_attention import TritonAttention, TritonSpans

    assert isinstance(cache.attention, TritonAttention)
    size, processors = cache.page_size, cache.attention.processors
    spans = TritonSpans(range(len(table)), table, size, most_rows, processors, cut)
    nothing = torch.empty(0, dtype=torch.int64, device=slots.device)
    # Where attention is planned, no more of a batch is read than slots and positions.
    batch = Batch(nothing, positions, slots, table, (0, len(slots)), (0,), size)
    return AttentionContext(batch, cache, [], spans)


def captured(what: str, make: Callable[[], T]) -> T | None:
    """What ``make`` captures; ``None``, with a line in the log, where a model does what no graph holds."""
    try:
        return make()
    except Exception as error:  # of a capture, of a compiler, of a model: kernel by kernel it runs
        log.warning("no CUDA graphs of %s, which is slower: %s", what, error, exc_info=True)
        return None
