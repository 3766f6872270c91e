"""What a CLIP tower attends to: how much its class token looks at each patch in the last layer, the mean of
all heads, as in FasterVLM (arXiv 2412.01818). Attention by SDPA does not give its weights, so those of one
row are made again from the queries and keys of the tower's last pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class ClassAttention:
    """Watches the last layer of ``tower``, transformers' ``CLIPVisionModel``."""

    def __init__(self, tower: Any) -> None:
        attention = tower.encoder.layers[-1].self_attn
        self._num_heads, self._scale = int(attention.num_heads), float(attention.scale)
        self._seen: dict[str, Tensor] = {}
        for name in ("q_proj", "k_proj"):
            getattr(attention, name).register_forward_hook(self._see(name))

    def scores(self) -> Tensor:
        """float32 ``[pictures, patches]`` of the last pass, which is forgotten."""
        queries = self._seen.pop("q_proj")[:, :1].unflatten(-1, (self._num_heads, -1)).transpose(1, 2)
        keys = self._seen.pop("k_proj").unflatten(-1, (self._num_heads, -1)).permute(0, 2, 3, 1)
        logits = queries.float() @ keys.float() * self._scale  # [pictures, heads, 1, 1 + patches]
        return logits.softmax(-1)[:, :, 0, 1:].mean(1)

    def _see(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
            self._seen[name] = output

        return hook
