"""Pruning by what a CLIP tower attends to: the tokens that its class token looks at in the last layer, as in
FasterVLM (arXiv 2412.01818). The engine has no such scores: attention by SDPA does not give its weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from compressors.base import Picture
from compressors.prune import AttentionPrune
from processing.prompt import ImageInput


class Attended(AttentionPrune):
    """``scores``: of each picture, by its key."""

    def __init__(self, ratio: float, scores: dict[bytes, Tensor]) -> None:
        super().__init__(ratio)
        self._scores = scores

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:
        return super().choose(replace(picture, scores=self._scores[picture.key]), inputs)


def class_attention(model: Path, images: Iterable[ImageInput]) -> dict[bytes, Tensor]:
    """Scores ``[N]`` of each picture, the mean of all heads; none where the tower is not CLIP's or a visual
    token is not one patch of it.
    """
    config = AutoConfig.from_pretrained(model)
    if config.model_type != "llava" or config.vision_config.model_type != "clip_vision_model":
        return {}
    tower = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).model.vision_tower
    tower.set_attn_implementation("eager")
    found = {}
    with torch.no_grad():
        for image in images:
            pixels = torch.from_numpy(image.tensors["pixel_values"]).float()
            weights = tower(pixels, output_attentions=True).attentions[-1]
            scores = weights[0, :, 0, 1:].mean(0)
            if len(scores) != image.num_tokens:
                return {}
            found[image.hash] = scores
    return found
