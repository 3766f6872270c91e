"""Qwen3-VL: Qwen2-VL with DeepStack (arXiv 2406.04334).

Features of early layers of the vision tower are added to the picture tokens after early layers of the text
model.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from engine.adapters.qwen2_vl import Qwen2VLAdapter
from processing.prompt import ImageInput


class Qwen3VLAdapter(Qwen2VLAdapter):
    """Adapter for Qwen3-VL.

    An encoded picture has ``hidden`` columns of embeddings, then as many for each layer of the text model
    that gets additional features.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    text_types: ClassVar[tuple[str, ...]] = ("qwen3_vl_text",)

    def image_inputs(self, rows: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> dict[str, Any]:
        seen = torch.zeros(shape.numel(), dtype=torch.bool, device=rows.device)
        _, *deep = values.split(self.text_config.hidden_size, dim=1)
        return {
            "visual_pos_masks": seen.index_fill_(0, rows, True).view(shape),
            "deepstack_visual_embeds": deep,
        }

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        output = self._model.get_image_features(*self._batch(images))
        layers = [output.pooler_output, *output.deepstack_features]
        return [torch.cat(own, dim=1) for own in zip(*layers, strict=True)]
