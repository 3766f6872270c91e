"""The interface between the engine and attention kernels over paged KV.

The spans of a batch are planned once per step and attended once per layer. Plain torch
(:mod:`engine.attention`) serves the spans that kernels do not, and is the reference for them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from engine.batch import Batch


class PlannedSpans(Protocol):
    """The spans of one step that kernels serve, planned for all layers.

    ``sequences``: their indices in the batch.
    """

    sequences: Seq[int]

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> None:
        """Fill the rows of these spans in ``out``, contiguous, from ``query``, both ``[N, heads, dim]``.

        ``keys`` and ``values`` ``[slots, kv_heads, dim]`` already include this step's. ``sliding_window``:
        how many logical positions a query sees, its own included; raises ``RuntimeError`` for a window over a
        tree that is partly in KV.
        """


class AttentionKernels(Protocol):
    """Attention kernels, selected when a model is loaded (:mod:`engine.kernels.choose`)."""

    def plan(self, batch: Batch) -> PlannedSpans | None:
        """Plan the spans of a step; return ``None`` if these kernels serve none of them."""
