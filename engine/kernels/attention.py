"""A self-attention layer as four kernel calls: fused QKV projection, rotation, attention, output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.attention import AttentionContext, attend, honoured
from engine.kernels.cpu import Heads, Kernels
from engine.kernels.modules import KernelLinear


class KernelAttention(nn.Module):
    """Grouped-query attention with rotary positions (half-split), made from a transformers layer.

    The layer must have ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``. ``window``: the number of keys that
    a query sees, ``None`` for all.
    """

    def __init__(self, layer: Any, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        parts = (layer.q_proj, layer.k_proj, layer.v_proj)
        biases = [part.bias for part in parts]
        bias = None if biases[0] is None else torch.cat(biases)
        self.layer_idx, self._dim, self._kernels = int(layer.layer_idx), int(layer.head_dim), kernels
        queries, kv = (part.out_features // self._dim for part in parts[:2])
        self.heads = Heads(queries, kv, self._dim, layer.scaling)
        self.scaling, self.window = layer.scaling, window
        self.qkv = KernelLinear(torch.cat([part.weight for part in parts]), bias, kernels)
        self.out = KernelLinear(layer.o_proj.weight, layer.o_proj.bias, kernels)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        context: AttentionContext | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Run on ``[1, N, hidden]``, as the layer it replaces.

        Raises ``RuntimeError`` for arguments that it would have to ignore.
        """
        context = honoured(context, attention_mask, 0.0, others)
        qkv = self.qkv(hidden_states).view(hidden_states.shape[1], -1, self._dim)
        keys, values = context.cache.keys[self.layer_idx], context.cache.values[self.layer_idx]
        self._kernels.rotate_and_write(
            qkv, *position_embeddings, keys, values, context.batch.slots, self.heads
        )
        out = attend(context, self.layer_idx, qkv[:, : self.heads.queries], self.scaling, self.window)
        return self.out(out.reshape(1, len(out), -1)), None
