"""The EAGLE draft module: one decoder layer of the target's type over (target feature, next embedding) pairs.

EagleVLM (SpecVLM, arXiv 2509.11815, section 3.1) after EAGLE-2 (arXiv 2406.16858). At slot ``i`` of a
sequence the draft reads the embedding of token ``i`` and the target's feature of token ``i - 1``, its hidden
state after the final norm, and predicts the feature of token ``i``, from which the target's own head gives
the distribution of token ``i + 1``. Slot 0 has no feature before it and takes zeros.

The same module trains and serves; only the attention implementation differs. Knows no pages and no trees.
"""

from __future__ import annotations

import inspect
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig

from engine.errors import ModelLoadError


class EagleDraft(nn.Module):
    """``fc([norm(embedding); norm(state)])``, then one decoder layer, whose output is the next state.

    If ``input_norm`` is false, ``fc`` takes its inputs without norms and the layer has no norm before its
    attention: the layout of the published EAGLE-1 and EAGLE-2 drafts. ``bias``: whether ``fc`` has a bias.
    """

    def __init__(
        self,
        text_config: PretrainedConfig,
        *,
        attn_implementation: str,
        input_norm: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        size = int(text_config.hidden_size)
        self.config, self.layer, self.rotary = decoder_layer(text_config, attn_implementation)
        self.embed_norm: nn.Module = nn.RMSNorm(size, eps=1e-5) if input_norm else nn.Identity()
        self.state_norm: nn.Module = nn.RMSNorm(size, eps=1e-5) if input_norm else nn.Identity()
        self.fc = nn.Linear(2 * size, size, bias=bias)
        if not input_norm:
            self.layer.input_layernorm = nn.Identity()

    @property
    def feature_size(self) -> int:
        """The width of the target features that ``fuse`` takes."""
        return int(self.config.hidden_size)

    def fuse(self, features: Tensor) -> Tensor:
        """Turn target features ``[..., feature_size]`` into states ``[..., hidden]``: here the identity."""
        return features

    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """Return the input of the layer at each slot, ``[..., hidden]``.

        It combines the states of tokens ``i - 1`` and the embeddings of tokens ``i``, both ``[..., hidden]``.
        Pictures are compressed in this form.
        """
        return cast(
            Tensor, self.fc(torch.cat([self.embed_norm(embeddings), self.state_norm(states)], dim=-1))
        )

    def run(
        self, joined: Tensor, positions: Tensor, attention_mask: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """Return the predicted features ``[B, N, hidden]`` of slots ``[B, N, hidden]`` made by ``join``.

        ``positions``: int64 ``[B, N]`` or ``[3, B, N]``. ``attention_mask`` and ``attention`` are passed to
        the attention implementation.
        """
        out = self.layer(
            joined,
            attention_mask=attention_mask,
            position_ids=positions,
            position_embeddings=self.rotary(joined, positions),
            **attention,
        )
        return cast(Tensor, out[0] if isinstance(out, tuple) else out)

    def forward(
        self,
        states: Tensor,
        embeddings: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """``join`` and ``run``: return the predicted features ``[B, N, hidden]`` of tokens ``i``."""
        return self.run(self.join(states, embeddings), positions, attention_mask, **attention)

    def read_out(self, states: Tensor) -> Tensor:
        """Return the input of the head, ``[..., hidden]``: here the states themselves."""
        return states


def decoder_layer(
    text_config: PretrainedConfig, attn_implementation: str
) -> tuple[PretrainedConfig, nn.Module, nn.Module]:
    """Create one layer of the target's type, with its configuration and its rotary embedding.

    The layer is float32 and uninitialised. Raises ``ModelLoadError`` if the type does not allow these sizes.
    """
    config = one_layer_config(text_config)
    # float32 is explicit because the configuration of a half-precision target asks for half precision.
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attn_implementation}
    try:
        with torch.device("meta"):  # only the layer of this model is needed; its embeddings cost nothing here
            model = cast(Any, AutoModel.from_config(config, **how))
    except ValueError as error:
        raise ModelLoadError(f"no {config.model_type} layer can be built for this draft: {error}") from error
    rotary = type(model.rotary_emb)(config=model.config)
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        rotary = _FullAttentionRotary(rotary)
    return model.config, model.layers[0].to_empty(device="cpu"), rotary


class _FullAttentionRotary(nn.Module):
    """Full-attention view of a rotary embedding whose frequencies depend on the layer type."""

    def __init__(self, by_type: nn.Module) -> None:
        super().__init__()
        self._by_type = by_type

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._by_type(hidden, positions, "full_attention")
        return cos, sin


def one_layer_config(text_config: PretrainedConfig) -> PretrainedConfig:
    """Return the target's text configuration reduced to one layer with full attention."""
    config = deepcopy(text_config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"]
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "use_sliding_window", False):
        config.use_sliding_window = False
    return config
