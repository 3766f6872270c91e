"""A whole decoder layer as one kernel call, for steps of few rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from engine.attention import AttentionContext, honoured
from engine.kernels.attention import KernelAttention
from engine.kernels.cpu import Kernels, LayerParts
from engine.kernels.modules import KernelMLP, KernelNorm
from engine.kernels.rows import FewRows


class KernelLayer(nn.Module):
    """A pre-norm decoder layer whose norms, attention and MLP are already kernels.

    Steps whose rows are not all served by the attention kernel use the layer's own forward.
    """

    def __init__(self, layer: Any, kernels: Kernels) -> None:
        super().__init__()
        self.layer, self._kernels = layer, kernels
        norm, mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._attention: KernelAttention = layer.self_attn
        self.parts = LayerParts(
            norm.weight.data_ptr(),
            mlp_norm.weight.data_ptr(),
            norm.eps,
            mlp_norm.eps,
            self._attention.qkv.product,
            self._attention.out.product,
            layer.mlp.gate_up,
            layer.mlp.down,
            self._attention.heads,
        )

    @property
    def index(self) -> int:
        return self._attention.layer_idx

    @property
    def window(self) -> int | None:
        return self._attention.window

    @staticmethod
    def fits(layer: Any) -> bool:
        """Whether the layer has these parts and no others."""
        kinds = {
            "input_layernorm": KernelNorm,
            "self_attn": KernelAttention,
            "post_attention_layernorm": KernelNorm,
            "mlp": KernelMLP,
        }
        return {name: type(part) for name, part in layer.named_children()} == kinds

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        context: AttentionContext | None = None,
        **others: Any,
    ) -> Tensor:
        """Run on ``[1, N, hidden]``. Raises ``RuntimeError`` for arguments that would be ignored."""
        planned = None if context is None or context.groups else context.planned
        if not isinstance(planned, FewRows):
            given = {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
            out: Tensor = self.layer(hidden_states, context=context, **given, **others)
            return out
        context = honoured(context, attention_mask, 0.0, others)
        assert position_embeddings is not None
        return self._kernels.layers(
            [self.parts],
            hidden_states,
            *position_embeddings,
            [context.cache.keys[self.index]],
            [context.cache.values[self.index]],
            context.batch.slots,
            [planned.seen(self.window)],
        )
