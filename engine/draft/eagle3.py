"""The EAGLE-3 draft module: attention over ``[embedding; state]`` pairs, features from several target layers.

EAGLE-3 (arXiv 2503.01840), following its public code (SafeAILab/EAGLE, SGLang and vLLM agree on the
formulas): one linear layer fuses a token's features, one from each tapped target layer, into a state; a
decoder layer whose attention reads ``[norm(embedding); norm(state)]`` computes the next state; a norm
precedes the head. Same interface as :class:`engine.draft.eagle.EagleDraft`. Knows no files, pages or trees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from engine.draft.eagle import decoder_layer
from engine.errors import ModelLoadError

_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """The optional parts of a published draft's attention, which may differ from the target's.

    ``head_norms``: norms of queries and keys (``q_norm``, ``k_norm``).
    """

    qkv_bias: bool = False
    output_bias: bool = False
    head_norms: bool = False


class Eagle3Draft(nn.Module):
    """The layers of an EAGLE-3 draft.

    ``text_config``: the target's text configuration with the draft's own sizes; its type determines the
    rotary embedding and the attention. ``num_features``: the number of tapped target layers. ``bias``:
    whether ``fc`` has a bias. ``norm_before_residual``: the residual stream continues from the normalised
    state, as in some trainers.
    """

    def __init__(
        self,
        text_config: PretrainedConfig,
        *,
        attn_implementation: str,
        parts: AttentionParts = AttentionParts(),
        num_features: int = 3,
        bias: bool = False,
        norm_before_residual: bool = False,
    ) -> None:
        super().__init__()
        size, eps = int(text_config.hidden_size), float(text_config.rms_norm_eps)
        self.config, layer, self.rotary = decoder_layer(text_config, attn_implementation)
        fit_layer(layer, 2 * size, parts)
        layer.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.layer = layer
        self.fc = nn.Linear(num_features * size, size, bias=bias)
        self.norm = nn.RMSNorm(size, eps=eps)
        self.norm_before_residual = norm_before_residual

    @property
    def feature_size(self) -> int:
        """The width of the target features that ``fuse`` takes: those of all tapped layers, concatenated."""
        return self.fc.in_features

    def fuse(self, features: Tensor) -> Tensor:
        """Fuse target features ``[..., feature_size]``, lowest layer first, into states ``[..., hidden]``."""
        return cast(Tensor, self.fc(features))

    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Return the input of the layer at each slot, ``[..., 2 * hidden]``.

        It concatenates the embeddings of tokens ``i`` and the states of tokens ``i - 1``, both
        ``[..., hidden]``. Pictures are compressed in this form.
        """
        return torch.cat([embeddings, states], dim=-1)

    def run(
        self, joined: Tensor, positions: Tensor, attention_mask: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """Return the next states ``[B, N, hidden]`` of slots ``[B, N, 2 * hidden]`` made by ``join``.

        ``positions``: int64 ``[B, N]`` or ``[3, B, N]``. ``attention_mask`` and ``attention`` are passed to
        the attention implementation.
        """
        layer = cast(Any, self.layer)
        embeddings, states = joined.chunk(2, dim=-1)
        normed = layer.hidden_norm(states)
        attended = layer.self_attn(
            hidden_states=torch.cat([layer.input_layernorm(embeddings), normed], dim=-1),
            attention_mask=attention_mask,
            position_ids=positions,
            position_embeddings=self.rotary(states, positions),
            **attention,
        )[0]
        hidden = (normed if self.norm_before_residual else states) + attended
        return cast(Tensor, hidden + layer.mlp(layer.post_attention_layernorm(hidden)))

    def forward(
        self,
        states: Tensor,
        embeddings: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """``join`` and ``run``: return the next states ``[B, N, hidden]``, those of tokens ``i``."""
        return self.run(self.join(states, embeddings), positions, attention_mask, **attention)

    def read_out(self, states: Tensor) -> Tensor:
        """Return the input of the head, ``[..., hidden]``: the normalised states."""
        return cast(Tensor, self.norm(states))


def fit_layer(layer: nn.Module, width: int, parts: AttentionParts) -> None:
    """Give the attention of ``layer`` projections with ``width`` inputs and exactly the given ``parts``.

    Raises ``ModelLoadError`` for a type of layer that the published layouts cannot describe.
    """
    found = {name for name, _ in layer.named_children()}
    attention = cast(Any, layer).self_attn if "self_attn" in found else nn.Module()
    if found != _PARTS or not all(hasattr(attention, name) for name in _PROJECTIONS):
        raise ModelLoadError(
            f"published EAGLE drafts are layers of Llama's shape, this target's are {type(layer).__name__}: "
            f"{sorted(found)} with attention over {[name for name, _ in attention.named_children()]}"
        )
    for name in _PROJECTIONS:
        old = getattr(attention, name)
        bias = parts.output_bias if name == "o_proj" else parts.qkv_bias
        inputs = old.in_features if name == "o_proj" else width
        new = nn.utils.skip_init(nn.Linear, inputs, old.out_features, bias=bias, dtype=old.weight.dtype)
        setattr(attention, name, new)
    for name in ("q_norm", "k_norm"):
        if hasattr(attention, name) and not parts.head_norms:
            setattr(attention, name, nn.Identity())
