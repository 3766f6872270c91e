"""Plans a step for the CPU attention kernel: which rows it serves, and what each of them sees."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch
from engine.config import MAX_TREE_NODES
from engine.kernels.cpu import Kernels, Seen

FEW = MAX_TREE_NODES
"""The longest span that is served, limited by the bits of a mask. Longer ones, which are prompt chunks, are
left to torch as large matrix products.
"""


@dataclass(frozen=True, slots=True)
class CpuAttention:
    """CPU attention in float32. Leaves spans with rows that see later ones to torch, and only those: what is
    beside them is computed as ever, to the last bit.
    """

    kernels: Kernels

    def plan(self, batch: Batch) -> FewRows | None:
        short = [s for s in range(batch.num_sequences) if batch.query_len(s) <= FEW]
        served = [s for s in short if not _sees_later_rows(batch, s)]
        return FewRows(batch, served, self.kernels) if served else None


def _sees_later_rows(batch: Batch, sequence: int) -> bool:
    if batch.visible_ends is None or batch.is_tree(sequence):
        return False
    ends = batch.visible_ends[batch.span_starts[sequence] : batch.span_starts[sequence + 1]]
    return bool((ends.numpy() > np.arange(batch.prefix_lens[sequence], batch.kv_len(sequence)) + 1).any())


class FewRows:
    """The short spans of one step, planned for all layers. Costs a few small arrays and no loop over rows."""

    def __init__(self, batch: Batch, sequences: Seq[int], kernels: Kernels) -> None:
        self.sequences = sequences
        self._kernels = kernels
        lengths = np.array([batch.query_len(s) for s in sequences])
        starts = np.array([batch.span_starts[s] for s in sequences])
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(starts, lengths) + within
        # A causal span is a tree without branches: its row i sees its rows 0 to i.
        masks = ~(np.uint64(0xFFFFFFFFFFFFFFFE) << within.astype(np.uint64))
        in_tree = np.repeat([batch.is_tree(s) for s in sequences], lengths)
        if batch.tree_masks is not None:
            masks = np.where(in_tree, batch.tree_masks.numpy()[rows].view(np.uint64), masks)
        self._whole_trees = all(
            batch.tree_start(s) == batch.prefix_lens[s] for s in sequences if batch.is_tree(s)
        )
        self._masks = masks
        self._tree_starts = np.repeat([batch.tree_start(s) for s in sequences], lengths)
        self._rows = torch.from_numpy(rows)
        self._sequences = torch.from_numpy(np.repeat(np.asarray(sequences), lengths))
        offsets = torch.arange(batch.page_size)
        self._table = (batch.page_table[:, :, None] * batch.page_size + offsets).flatten(1)
        self._seen: dict[int | None, Seen] = {}

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> None:
        """Fill these rows of ``out`` ``[N, heads, dim]`` from ``query``, which has the same shape."""
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._kernels.attend(query, keys, values, out, self.seen(sliding_window), scale)

    def seen(self, sliding_window: int | None) -> Seen:
        if sliding_window not in self._seen:
            self._seen[sliding_window] = self._visible(sliding_window)
        return self._seen[sliding_window]

    @property
    def windows(self) -> set[int | None]:
        """The sliding windows that were requested so far."""
        return set(self._seen)

    def _visible(self, window: int | None) -> Seen:
        """Compute what each row sees. A node's logical position is its depth in the tree.

        Like the reference, raises ``RuntimeError`` for a window over a tree with nodes already in KV.
        """
        first, masks = np.zeros_like(self._tree_starts), self._masks
        if window is not None:
            if not self._whole_trees:
                raise RuntimeError("sliding windows are not supported for a tree that is partly in KV")
            depths = np.bitwise_count(masks).astype(np.int64) - 1
            first = np.clip(self._tree_starts + depths - window + 1, 0, self._tree_starts)
            while len(far := np.flatnonzero(depths >= window)):
                masks = masks.copy()
                masks[far] &= masks[far] - np.uint64(1)  # clear the bit of the farthest ancestor
                depths[far] -= 1
        return Seen(
            rows=self._rows,
            sequences=self._sequences,
            first=torch.from_numpy(first),
            tree_starts=torch.from_numpy(self._tree_starts),
            masks=torch.from_numpy(masks.view(np.int64)),
            table=self._table,
        )
