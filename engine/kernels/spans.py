"""The contract between the engine and kernels that attend over paged KV.

A batch's spans are planned once a step and attended once a layer. Plain torch (:mod:`engine.attention`)
serves what kernels leave, and is the reference for them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from torch import Tensor

from engine.batch import Batch


class PlannedSpans(Protocol):
    """The spans of one step that kernels serve, ready for every layer. ``sequences``: which of the batch."""

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
        """Fill the rows of these spans in ``out``, dense, from ``query``, both ``[N, heads, dim]``. ``keys``
        and ``values`` ``[slots, kv_heads, dim]`` hold this step's already. ``sliding_window``: how many
        logical positions a query sees, its own included; ``RuntimeError`` over a tree that is partly in KV.
        """


class AttentionKernels(Protocol):
    """Chosen by device and type when a model is loaded (:mod:`engine.kernels.choose`)."""

    def plan(self, batch: Batch) -> PlannedSpans | None:
        """``None`` if no span of ``batch`` is for these kernels."""
