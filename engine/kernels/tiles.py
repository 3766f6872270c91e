"""What every row of a step sees, as three integers, and the row cut into tiles: the plan of the GPU kernel.

A row sees the logical slots ``first`` to ``limit`` - 1 of its sequence, and node ``j`` of its tree, which is
slot ``tree_start + j``, if bit ``j`` of its ``mask`` is set. A sequence with 5 slots in KV that runs three
tokens, and one with 7 that runs a tree of a root and its two children:

    row      0    1    2  |  3       4       5
    limit    6    7    8  |  7       7       7      tree_start 7
    mask     0    0    0  |  0b001   0b011   0b101

A window of 4 raises ``first`` to the row's position less 3, where a node's position is its depth behind
``tree_start``, and takes away the bits of nodes that are farther up than that.

Plain torch on any device; knows no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch
from engine.config import MAX_TREE_NODES
from engine.transfer import to_device


@dataclass(slots=True, frozen=True)
class Seen:
    """int64 ``[N]`` each."""

    first: Tensor
    masks: Tensor


ANY_LENGTH = 1 << 40
"""``longest`` of batches to come."""


class Tiling(Protocol):
    """``tiles`` int64 ``[T, 5]``: sequence, first row, number of rows, ``tree_start``, and a logical slot
    from which on none of its rows sees any. ``limit`` int64 ``[N]``. ``longest``: the most slots that a tile
    may look at.
    """

    @property
    def tiles(self) -> Tensor: ...

    @property
    def limit(self) -> Tensor: ...

    @property
    def longest(self) -> int: ...

    @property
    def busy(self) -> int:
        """How many tiles have rows, about."""

    def visible(self, window: int | None) -> Seen:
        """By a window of so many positions, if any."""


@dataclass(slots=True)
class Tiles:
    """Those of one batch. ``positions`` (of trees: their start) and ``in_tree`` (0 or 1) int64 ``[N]``."""

    batch: Batch
    tiles: Tensor
    limit: Tensor
    positions: Tensor
    in_tree: Tensor
    longest: int
    seen: dict[int | None, Seen] = field(default_factory=dict)

    @property
    def busy(self) -> int:
        return len(self.tiles)

    def visible(self, window: int | None) -> Seen:
        """Computed on the device, when a layer first asks for this window."""
        if window not in self.seen:
            self.seen[window] = _visible(self, window)
        return self.seen[window]


@dataclass(slots=True)
class FixedTiles:
    """Room for the tiles of any batch of at most N rows, always in the same memory: what a CUDA graph reads.
    Tiles without rows see nothing and cost next to nothing.
    """

    rows_per_tile: int
    busy: int
    tiles: Tensor
    limit: Tensor
    longest: int = ANY_LENGTH
    seen: dict[int | None, Seen] = field(default_factory=dict)

    @classmethod
    def room(cls, num_rows: int, rows_per_tile: int, busy: int, device: torch.device) -> FixedTiles:
        tiles = torch.zeros(num_rows, 5, dtype=torch.int64, device=device)
        return cls(rows_per_tile, busy, tiles, tiles.new_zeros(num_rows))

    def visible(self, window: int | None) -> Seen:
        """Windows that are asked for before the first :meth:`load` are loaded from then on."""
        if window not in self.seen:
            self.seen[window] = Seen(torch.zeros_like(self.limit), torch.zeros_like(self.limit))
        return self.seen[window]

    def load(self, batch: Batch) -> None:
        own = cut(batch, self.rows_per_tile, num_tiles=len(self.tiles))
        self.tiles.copy_(own.tiles)
        self.limit[: batch.num_rows] = own.limit
        for window, room in self.seen.items():
            seen = own.visible(window)
            room.first[: batch.num_rows] = seen.first
            room.masks[: batch.num_rows] = seen.masks


def cut(batch: Batch, rows_per_tile: int, num_tiles: int = 0) -> Tiles:
    """No tile holds rows of two sequences. One copy to the device, no loop over rows. ``num_tiles``: at
    least so many, the last ones without rows.
    """
    rows, tiles = [], []
    for sequence in range(batch.num_sequences):
        start, length = batch.span_starts[sequence], batch.query_len(sequence)
        is_tree, tree_start = batch.is_tree(sequence), batch.tree_start(sequence)
        kv_len = batch.kv_len(sequence)
        own = np.full(length, tree_start) if is_tree else np.arange(kv_len - length, kv_len)
        rows.append(np.stack([own, own if is_tree else own + 1, np.full(length, is_tree)]))
        firsts = np.arange(0, length, rows_per_tile)
        counts = np.minimum(rows_per_tile, length - firsts)
        causal = not is_tree and batch.visible_ends is None
        ends = own[firsts + counts - 1] + 1 if causal else np.full(len(firsts), kv_len)
        # Behind the last slot of a causal tile there is no tree: no bit is ever looked up.
        starts = np.full(len(firsts), tree_start) if is_tree else ends
        sequences = np.full(len(firsts), sequence)
        tiles.append(np.stack([sequences, start + firsts, counts, starts, ends], axis=1))
    by_row, by_tile = np.concatenate(rows, axis=1), np.concatenate(tiles)
    if len(by_tile) < num_tiles:
        by_tile = np.pad(by_tile, ((0, num_tiles - len(by_tile)), (0, 0)))
    own_rows, own_tiles = to_device([by_row, by_tile], batch.slots.device)
    positions, limit, in_tree = own_rows.unbind()
    if batch.visible_ends is not None:
        limit = torch.where(in_tree == 1, limit, batch.visible_ends)
    return Tiles(batch, own_tiles, limit, positions, in_tree, int(by_tile[:, -1].max()))


def _visible(tiles: Tiles, window: int | None) -> Seen:
    """Raises ``RuntimeError`` for a window over a tree part of whose nodes are in KV already: their depths
    are not known here (a draft's layer, which alone has such trees, attends fully).
    """
    batch, positions = tiles.batch, tiles.positions
    masks = torch.zeros_like(positions) if batch.tree_masks is None else batch.tree_masks
    if window is None:
        return Seen(torch.zeros_like(positions), masks)
    trees = [s for s in range(batch.num_sequences) if batch.is_tree(s)]
    if not trees:
        return Seen((positions - window + 1).clamp(min=0), masks)
    if any(batch.tree_start(s) != batch.prefix_lens[s] for s in trees):
        raise RuntimeError("a sliding window over a tree that is partly in KV")
    node = torch.arange(MAX_TREE_NODES, device=masks.device)
    bits = (masks[:, None] >> node) & 1  # [N, 64]
    depth = (bits.sum(-1) - 1).clamp(min=0)  # causal rows have no bits
    starts = torch.from_numpy(np.repeat(batch.span_starts[:-1], np.diff(batch.span_starts))).to(masks.device)
    rows_of_nodes = (starts[:, None] + node).clamp(max=len(masks) - 1)  # node j is row j of its span
    near = depth[rows_of_nodes] > depth[:, None] - window
    # A tree's nodes are looked up by their bits alone: ``first`` must not pass its start.
    first = (positions + depth - window + 1).clamp(min=0)
    first = torch.where(tiles.in_tree == 1, torch.minimum(first, positions), first)
    return Seen(first, (bits * near << node).sum(-1))
