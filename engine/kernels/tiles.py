"""The plan for the GPU attention kernel: what each row sees, as three integers, and the tiles of rows.

A row sees the logical slots ``first`` to ``limit`` - 1 of its sequence, and node ``j`` of its tree, which is
slot ``tree_start + j``, if bit ``j`` of its ``mask`` is set. A sequence with 5 slots in KV that runs three
tokens, and one with 7 that runs a tree of a root and its two children:

    row      0    1    2  |  3       4       5
    limit    6    7    8  |  7       7       7      tree_start 7
    mask     0    0    0  |  0b001   0b011   0b101

A window of 4 raises ``first`` to the row's position minus 3, where a node's position is ``tree_start`` plus
its depth, and clears the bits of ancestors that are farther away than that.

Plain torch on any device; independent of the kernel.
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
    """What each row sees besides its ``limit``; int64 ``[N]`` each."""

    first: Tensor
    masks: Tensor


ANY_LENGTH = 1 << 40
"""The value of ``longest`` for plans that are made before their batches are known."""


class Tiling(Protocol):
    """The tiles of a packed row.

    ``tiles`` int64 ``[T, 5]``: sequence, first row, number of rows, ``tree_start``, and the end of the
    logical slots that any of its rows sees. ``limit`` int64 ``[N]``. ``longest``: the most slots that a tile
    may read.
    """

    @property
    def tiles(self) -> Tensor: ...

    @property
    def limit(self) -> Tensor: ...

    @property
    def longest(self) -> int: ...

    @property
    def busy(self) -> int:
        """The approximate number of tiles with rows."""

    def visible(self, window: int | None) -> Seen:
        """Return what each row sees within a window of ``window`` positions, if any."""


@dataclass(slots=True)
class Tiles:
    """The tiles of one batch. int64 ``[N]``: ``positions`` (for trees, their start), ``in_tree`` (0 or 1)."""

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
        """Return what each row sees; computed on the device when a layer first needs this window."""
        if window not in self.seen:
            self.seen[window] = _visible(self, window)
        return self.seen[window]


@dataclass(slots=True)
class FixedTiles:
    """Fixed memory for the tiles of any batch of at most N rows, as CUDA graphs require.

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
        """Return the buffers for a window, which are filled from the next :meth:`load` on."""
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
    """Cut a batch into tiles, none of which holds rows of two sequences.

    ``num_tiles``: the minimum number of tiles; the last ones then have no rows. Costs one copy to the device,
    and no loop over rows.
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
        # The tree of a causal tile starts after its last slot, so that its bits are never used.
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
    """Compute what each row sees.

    Raises ``RuntimeError`` for a window over a tree with nodes that are already in KV, since their depths are
    not known here (only drafts have such trees, and their layers attend fully).
    """
    batch, positions = tiles.batch, tiles.positions
    masks = torch.zeros_like(positions) if batch.tree_masks is None else batch.tree_masks
    if window is None:
        return Seen(torch.zeros_like(positions), masks)
    trees = [s for s in range(batch.num_sequences) if batch.is_tree(s)]
    if not trees:
        return Seen((positions - window + 1).clamp(min=0), masks)
    if any(batch.tree_start(s) != batch.prefix_lens[s] for s in trees):
        raise RuntimeError("sliding windows are not supported for a tree that is partly in KV")
    node = torch.arange(MAX_TREE_NODES, device=masks.device)
    bits = (masks[:, None] >> node) & 1  # [N, 64]
    depth = (bits.sum(-1) - 1).clamp(min=0)  # causal rows have no bits
    starts = torch.from_numpy(np.repeat(batch.span_starts[:-1], np.diff(batch.span_starts))).to(masks.device)
    rows_of_nodes = (starts[:, None] + node).clamp(max=len(masks) - 1)  # node j is row j of its span
    near = depth[rows_of_nodes] > depth[:, None] - window
    # Tree nodes are selected only by their bits: ``first`` must not exceed the tree's start.
    first = (positions + depth - window + 1).clamp(min=0)
    first = torch.where(tiles.in_tree == 1, torch.minimum(first, positions), first)
    return Seen(first, (bits * near << node).sum(-1))
