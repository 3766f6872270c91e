"""Triton attention over paged KV for CUDA: causal spans, draft trees and sliding windows in one launch.

Follows FlashAttention-2 (arXiv 2307.08691) and, for few rows with a long context, Flash-Decoding: the context
is split over several programs, whose results are joined by a second launch. Imported only where it is used.
Checked in Triton's interpreter and on one GPU (``docs/cuda.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.batch import Batch
from engine.kernels.tiles import Tiling, cut

_FEW = 16  # minimum query rows times heads of a tile, as matrix units require
_TILE_BYTES = 16 << 10  # of queries, and of keys at a time: double-buffered keys and values fit on any GPU
_LINE_BYTES = 128  # of a line of a tile's scores in the inputs' dtype: more would not fit into registers
_SPLIT_SLOTS = 256  # for shorter parts of a context, joining costs more than splitting saves
_MOST_SPLITS = 16


@dataclass(frozen=True, slots=True)
class TritonAttention:
    """Triton's attention kernels.

    ``processors``: the number of multiprocessors; contexts are split in steps with too little work for them.
    """

    processors: int

    @classmethod
    def of(cls, device: torch.device) -> TritonAttention:
        return cls(torch.cuda.get_device_properties(device).multi_processor_count)

    def plan(self, batch: Batch) -> TritonSpans:
        most_rows = max(batch.query_len(sequence) for sequence in range(batch.num_sequences))
        return TritonSpans(
            range(batch.num_sequences),
            batch.page_table,
            batch.page_size,
            most_rows,
            self.processors,
            partial(cut, batch),
        )


@dataclass
class TritonSpans:
    """All spans of one step.

    ``most_rows``: the most rows of a sequence. ``cut`` cuts the rows into tiles of at most the given size,
    which depends on how heads share keys: it is called when a layer first needs it. ``windows``: the sliding
    windows requested so far.
    """

    sequences: Seq[int]
    page_table: Tensor
    page_size: int
    most_rows: int
    processors: int
    cut: Callable[[int], Tiling]
    windows: set[int | None] = field(default_factory=set)
    _tiles: dict[int, Tiling] = field(default_factory=dict)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> None:
        """See :class:`engine.kernels.spans.PlannedSpans`. bfloat16, float16 or float32; sums are float32."""
        self.windows.add(sliding_window)
        num_rows, heads, dim = query.shape
        kv_heads = keys.shape[1]
        share = heads // kv_heads
        padded_dim, padded_share = max(16, triton.next_power_of_2(dim)), triton.next_power_of_2(share)
        most = max(
            _FEW, min(_LINE_BYTES // query.element_size(), _TILE_BYTES // (padded_dim * query.element_size()))
        )
        block = max(padded_share, _FEW if self.most_rows * padded_share <= _FEW else most)
        rows_per_tile = block // padded_share
        if rows_per_tile not in self._tiles:
            self._tiles[rows_per_tile] = self.cut(rows_per_tile)
        tiles = self._tiles[rows_per_tile]
        seen = tiles.visible(sliding_window)
        splits = self._splits(tiles, kv_heads, sliding_window)
        # Without splits the kernel fills ``out`` itself.
        parts = out.new_empty((splits, num_rows, heads, dim), dtype=torch.float32) if splits > 1 else out
        sums = out.new_empty((splits, num_rows, heads) if splits > 1 else 1, dtype=torch.float32)
        query = query if query.stride(-1) == 1 else query.contiguous()
        _attend[(len(tiles.tiles), kv_heads, splits)](
            query,
            keys,
            values,
            parts,
            sums,
            seen.first,
            tiles.limit,
            seen.masks,
            tiles.tiles,
            self.page_table,
            self.page_table.stride(0),
            query.stride(0),
            query.stride(1),
            num_rows,
            (dim**-0.5 if scaling is None else scaling) * 1.4426950408889634,  # exp(x) is exp2(x / log(2))
            PAGE_SIZE=self.page_size,
            DIM=dim,
            BLOCK_D=padded_dim,
            SHARE=share,
            SHARE_PADDED=padded_share,
            BLOCK_M=block,
            BLOCK_N=most,
            SPLIT=splits > 1,
            num_warps=4,
            num_stages=2,
        )
        if splits > 1:
            _join[(num_rows, heads)](parts, sums, out, splits, DIM=dim, BLOCK_D=padded_dim, num_warps=1)

    def _splits(self, tiles: Tiling, kv_heads: int, window: int | None) -> int:
        """Return the number of parts of each context.

        It is chosen to give twice as many programs as processors if contexts are long enough, and is 1 if
        there are enough programs anyway.
        """
        span = tiles.longest if window is None else min(tiles.longest, window + self.most_rows)
        wanted = -(-2 * self.processors // (tiles.busy * kv_heads))
        return max(1, min(wanted, span // _SPLIT_SLOTS, _MOST_SPLITS))


# Arguments that change from step to step must not be specialised: every new value would be recompiled.
_VARYING = ("table_stride", "num_rows")
_UNALIGNED = ("first", "limit", "masks", "tiles", "table")  # views that begin anywhere in one tensor


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def _attend(  # type: ignore[no-untyped-def]
    query,  # [N, heads, DIM]
    keys,  # [slots, kv_heads, DIM]
    values,
    out,  # [N, heads, DIM]; if SPLIT [splits, N, heads, DIM] float32, each part normalised by itself
    sums,  # [splits, N, heads]: log2 of the sum of each part's weights
    first,  # int64 [N], see engine/kernels/tiles.py
    limit,
    masks,
    tiles,  # int64 [T, 5]
    table,  # int64 [S, pages]
    table_stride,
    query_row,
    query_head,
    num_rows,
    scale,
    PAGE_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHARE: tl.constexpr,
    SHARE_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """One tile of query rows with the heads that share one KV head, over one part of its context.

    Line m of the tile is row ``m // SHARE_PADDED`` with head ``m % SHARE_PADDED``.
    """
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, parts = tl.num_programs(1), tl.num_programs(2)
    sequence = tl.load(tiles + tile * 5)
    first_row = tl.load(tiles + tile * 5 + 1)
    count = tl.load(tiles + tile * 5 + 2)
    tree_start = tl.load(tiles + tile * 5 + 3)
    end = tl.load(tiles + tile * 5 + 4)

    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    shared = line % SHARE_PADDED
    valid = (line // SHARE_PADDED < count) & (shared < SHARE)
    row = first_row + line // SHARE_PADDED
    head = kv_head * SHARE + shared
    inside = column < DIM
    q = tl.load(
        query + (row * query_row + head * query_head)[:, None] + column[None, :],
        mask=valid[:, None] & inside[None, :],
        other=0.0,
    )
    # Padding lines see nothing and do not widen the range that the tile reads.
    row_first = tl.load(first + row, mask=valid, other=end)
    row_limit = tl.load(limit + row, mask=valid, other=0)
    row_mask = tl.load(masks + row, mask=valid, other=0)

    begin = tl.min(row_first, axis=0)
    own = tl.cdiv(tl.cdiv(end - begin, parts), BLOCK_N) * BLOCK_N
    begin = begin + part * own
    end = tl.minimum(end, begin + own)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_N):
        logical = start + tl.arange(0, BLOCK_N)
        exists = logical < end
        page = tl.load(table + sequence * table_stride + logical // PAGE_SIZE, mask=exists, other=0)
        slot = page * PAGE_SIZE + logical % PAGE_SIZE  # int64: a cache may have more than 2^31 elements
        at = (slot * kv_heads + kv_head)[:, None] * DIM + column[None, :]
        here = exists[:, None] & inside[None, :]
        k = tl.load(keys + at, mask=here, other=0.0)
        v = tl.load(values + at, mask=here, other=0.0)
        node = logical - tree_start
        bit = (row_mask[:, None] >> tl.minimum(tl.maximum(node, 0), 63)[None, :]) & 1
        seen = (logical[None, :] < row_limit[:, None]) | ((bit == 1) & ((node >= 0) & (node < 64))[None, :])
        seen = seen & (logical[None, :] >= row_first[:, None]) & exists[None, :]
        # "ieee": float32 must not be rounded to the matrix units' 19 bits.
        scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision="ieee") * scale, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # a line that has seen nothing yet
        weights = tl.exp2(scores - level[:, None])
        shrink = tl.exp2(best - level)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        best = higher

    total = tl.where(total == 0.0, 1.0, total)  # a line that saw nothing in this part: its best is -inf
    result = acc / total[:, None]
    place = row * (kv_heads * SHARE) + head
    if SPLIT:
        place = place + part.to(tl.int64) * num_rows * (kv_heads * SHARE)
        tl.store(sums + place, best + tl.log2(total), mask=valid)
    tl.store(
        out + place[:, None] * DIM + column[None, :],
        result.to(out.dtype.element_ty),
        mask=valid[:, None] & inside[None, :],
    )


@triton.jit(do_not_specialize=("splits",))
def _join(parts, sums, out, splits, DIM: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Join parts ``[splits, N, heads, DIM]`` into ``out``, weighted by their shares of all weights."""
    heads = tl.num_programs(1)
    place = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    step = tl.num_programs(0).to(tl.int64) * heads
    column = tl.arange(0, BLOCK_D)
    inside = column < DIM
    best = tl.load(sums + place)
    for part in range(1, splits):
        best = tl.maximum(best, tl.load(sums + place + part * step))
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for part in range(splits):
        weight = tl.exp2(tl.load(sums + place + part * step) - best)
        own = tl.load(parts + (place + part * step) * DIM + column, mask=inside, other=0.0)
        total += weight
        acc += own * weight
    tl.store(out + place * DIM + column, (acc / total).to(out.dtype.element_ty), mask=inside)
