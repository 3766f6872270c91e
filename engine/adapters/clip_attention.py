"""Attention scores of a CLIP tower, as in FasterVLM (arXiv 2412.01818).

A patch's score is the attention of the class token to it in the last layer, averaged over all heads. SDPA
does not return attention weights, so those of this one row are recomputed from the queries and keys of the
tower's last pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ClassAttention:
    """Hooks into the last layer of ``tower``, a transformers ``CLIPVisionModel``."""

    def __init__(self, tower: Any) -> None:
        attention = tower.encoder.layers[-1].self_attn
        self._num_heads, self._scale = int(attention.num_heads), float(attention.scale)
        self._seen: dict[str, Tensor] = {}
        for name in ("q_proj", "k_proj"):
            getattr(attention, name).register_forward_hook(self._see(name))

    def scores(self) -> Tensor:
        """Return the scores of the last pass, float32 ``[pictures, patches]``, and discard its state."""
        queries = self._seen.pop("q_proj")[:, :1].unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
        keys = self._seen.pop("k_proj").unflatten(-1, (self._num_heads, -1)).permute(0, 2, 3, 1)
        logits = queries.float() @ keys.float() * self._scale  # [pictures, heads, 1, 1 + patches]
        return logits.softmax(-1)[:, :, 0, 1:].mean(1)

    def _see(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
            self._seen[name] = output

        return hook
