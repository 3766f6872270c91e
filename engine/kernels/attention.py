"""A self-attention layer as four calls: queries, keys and values at once, rotation, attention, output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attention import AttentionContext, attend, honoured
from engine.kernels.cpu import Kernels
from engine.kernels.modules import KernelLinear


class KernelAttention(nn.Module):
    """Grouped heads with rotary positions, halves rotated against each other, of a transformers layer with
    ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``. ``window``: keys that a query sees, ``None`` for all.
    """

    def __init__(self, layer: Any, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        parts = (layer.q_proj, layer.k_proj, layer.v_proj)
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        self.layer_idx, self._dim, self._kernels = int(layer.layer_idx), int(layer.head_dim), kernels
        self._num_heads = parts[0].out_features // self._dim
        self._scaling, self._window = layer.scaling, window
        self._qkv = KernelLinear(torch.cat([part.weight for part in parts]), bias, kernels)
        self._out = KernelLinear(layer.o_proj.weight, layer.o_proj.bias, kernels)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        context: AttentionContext | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Of ``[1, N, hidden]``, as the layer it replaces. Raises ``RuntimeError`` on what it ignored."""
        context = honoured(context, attention_mask, 0.0, others)
        qkv = self._qkv(hidden_states).view(hidden_states.shape[1], -1, self._dim)
        (cos,), (sin,) = position_embeddings
        keys, values = context.cache.keys[self.layer_idx], context.cache.values[self.layer_idx]
        self._kernels.rotate_and_write(qkv, cos, sin, keys, values, context.batch.slots)
        out = attend(context, self.layer_idx, qkv[:, : self._num_heads], self._scaling, self._window)
        return self._out(out.reshape(1, len(out), -1)), None
