"""CUDA graphs that launch all kernels of a small step at once.

A small step is hundreds of kernels of a few microseconds each, which Python launches more slowly than a GPU
runs them. A graph replays them from fixed memory, into which each step's inputs are copied first.
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
"""Steps are padded to the next of these numbers of rows; for larger steps a graph does not pay."""

Run = Callable[[], Seq[Tensor]]
T = TypeVar("T")


class Capture(Protocol):
    """Captures a run; returns its results and a function that runs it again into the same memory."""

    def __call__(self, run: Run) -> tuple[Seq[Tensor], Callable[[], None]]: ...


class CudaCapture:
    """Captures graphs that share memory for intermediate results.

    A replay may overwrite the results of all graphs that were captured later: read those first.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, run: Run) -> tuple[Seq[Tensor], Callable[[], None]]:
        """Capture ``run`` after one warm-up run, for what is compiled or allocated on first use."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        graph = torch.cuda.CUDAGraph()
        how: Any = {"pool": self._pool, "stream": self._stream, "capture_error_mode": "thread_local"}
        try:
            # A failed capture leaves its stream as the current one; the outer context restores it.
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, **how):
                results = run()
        except Exception:
            self._pool = torch.cuda.graph_pool_handle()  # the old pool is in an undefined state
            raise
        graph.replay()  # the next capture must not read uninitialised memory
        return results, graph.replay


@dataclass(slots=True)
class _Captured:
    """A captured forward pass of ``rows`` rows from fixed memory."""

    rows: int
    tiles: dict[int, FixedTiles]
    results: Seq[Tensor]
    replay: Callable[[], None]


@dataclass(slots=True)
class RowGraphs:
    """Graphs of forward passes over one KV cache, one per number of rows.

    ``run`` takes inputs ``[N, width]`` and a context, and returns tensors whose first dimension is N; rows
    may depend on each other only through attention. ``max_pages``: the most pages of a sequence; ``axes``:
    the number of position axes.
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
        """Capture all sizes, largest first, so that smaller ones reuse their memory."""
        started = time.monotonic()
        most_single = next((rows for rows in ROWS if rows >= max_num_seqs), ROWS[-1])
        for rows in reversed(ROWS):
            self._captured[rows, False] = self._make(rows, single=False)
            if rows <= most_single:
                self._captured[rows, True] = self._make(rows, single=True)
        log.info("captured %d CUDA graphs in %.1f s", len(self._captured), time.monotonic() - started)

    @torch.inference_mode()
    def forward(self, context: AttentionContext, inputs: Tensor) -> Seq[Tensor] | None:
        """Return the results of ``run``; ``None`` for a row that no graph supports."""
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
        # Clone the results: the next step overwrites them.
        return [result[: batch.num_rows].clone() for result in captured.results]

    def _load(self, captured: _Captured, batch: Batch, inputs: Tensor) -> None:
        """Copy a batch into fixed memory. Padding rows write into the spare slot, which nothing reads."""
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
        """Capture a graph for ``rows`` rows.

        ``single``: each row belongs to a different sequence, for which tiles are smaller.
        """
        device = self.cache.device
        tiles: dict[int, FixedTiles] = {}

        def cut(rows_per_tile: int) -> FixedTiles:
            if rows_per_tile not in tiles:  # during the warm-up run before the capture
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
    """Return the context of rows that are described in fixed memory; for ``cut`` see ``TritonSpans``."""
    from engine.kernels.triton_attention import TritonAttention, TritonSpans

    assert isinstance(cache.attention, TritonAttention)
    size, processors = cache.page_size, cache.attention.processors
    spans = TritonSpans(range(len(table)), table, size, most_rows, processors, cut)
    nothing = torch.empty(0, dtype=torch.int64, device=slots.device)
    # With planned attention, only the slots and positions of a batch are read.
    batch = Batch(nothing, positions, slots, table, (0, len(slots)), (0,), size)
    return AttentionContext(batch, cache, [], spans)


def captured(what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` captures; ``None``, with a warning, if the model cannot be captured."""
    try:
        return make()
    except Exception as error:  # whatever goes wrong in a capture: the engine also runs without graphs
        log.warning("%s runs without CUDA graphs, which is slower: %s", what, error, exc_info=True)
        return None
