"""The EAGLE draft: one decoder layer of the target's kind over (target feature, next embedding) pairs.

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
    """``fc([norm(embedding); norm(state)])``, then one decoder layer; its output is the next state.

    With ``input_norm`` false the parts go into ``fc`` as they are and the layer has no norm before its
    attention: the layout of the published EAGLE-1 and EAGLE-2 drafts. ``bias`` is that of ``fc``.
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
        """Width of the target's features that ``fuse`` takes."""
        return int(self.config.hidden_size)

    def fuse(self, features: Tensor) -> Tensor:
        """Target features ``[..., feature_size]`` as states ``[..., hidden]``: the same here."""
        return features

    def join(self, states: Tensor, embeddings: Tensor) -> Tensor:
        """What the layer reads at each slot, ``[..., hidden]``: the states of tokens ``i - 1`` beside the
        embeddings of tokens ``i``, both ``[..., hidden]``. Pictures are compressed in this form.
        """
        return cast(
            Tensor, self.fc(torch.cat([self.embed_norm(embeddings), self.state_norm(states)], dim=-1))
        )

    def run(
        self, joined: Tensor, positions: Tensor, attention_mask: Tensor | None = None, **attention: Any
    ) -> Tensor:
        """Predicted features ``[B, N, hidden]`` of slots ``[B, N, hidden]`` as ``join`` makes them;
        ``positions`` int64 ``[B, N]`` or ``[3, B, N]``.

        ``attention_mask`` and ``attention`` go to the attention implementation.
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
        """``join`` and ``run``: predicted features ``[B, N, hidden]`` of tokens ``i``."""
        return self.run(self.join(states, embeddings), positions, attention_mask, **attention)

    def read_out(self, states: Tensor) -> Tensor:
        """What the head takes, ``[..., hidden]``: the states as they are."""
        return states


def decoder_layer(
    text_config: PretrainedConfig, attn_implementation: str
) -> tuple[PretrainedConfig, nn.Module, nn.Module]:
    """A layer of this kind, float32 and not initialised, with its configuration and its rotary embedding.

    Raises ``ModelLoadError`` where the kind allows no such sizes.
    """
    config = one_layer_config(text_config)
    # float32 is said, because the configuration of a half precision target asks for half precision.
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attn_implementation}
    try:
        with torch.device("meta"):  # only the layer is wanted of this model; its embeddings cost nothing here
            model = cast(Any, AutoModel.from_config(config, **how))
    except ValueError as error:
        raise ModelLoadError(f"no layer of the kind {config.model_type} for this draft: {error}") from error
    rotary = type(model.rotary_emb)(config=model.config)
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        rotary = _FullAttentionRotary(rotary)
    return model.config, model.layers[0].to_empty(device="cpu"), rotary


class _FullAttentionRotary(nn.Module):
    """Of a rotary embedding whose frequencies differ by the type of layer, those of full attention."""

    def __init__(self, by_type: nn.Module) -> None:
        super().__init__()
        self._by_type = by_type

    def forward(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._by_type(hidden, positions, "full_attention")
        return cos, sin


def one_layer_config(text_config: PretrainedConfig) -> PretrainedConfig:
    """The target's text configuration with one layer of full attention."""
    config = deepcopy(text_config)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"]
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    if getattr(config, "use_sliding_window", False):
        config.use_sliding_window = False
    return config
