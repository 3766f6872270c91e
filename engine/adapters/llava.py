"""LLaVA-1.5: a fixed number of visual tokens per picture, projected features of a CLIP-style tower."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from compressors.base import Grid
from engine.adapters.clip_attention import ClassAttention
from engine.adapters.vision import VisionAdapter, tensor_of
from engine.errors import ModelLoadError
from processing.prompt import ImageInput


class LlavaAdapter(VisionAdapter):
    """Adapter for LLaVA-1.5.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[1, 3, image_size, image_size]``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    can_spare_tokens = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        vision, config = model.config.vision_config, model.config
        self._pixel_shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        drop = config.vision_feature_select_strategy == "default"
        self._num_tokens = (vision.image_size // vision.patch_size) ** 2 + (0 if drop else 1)
        is_clip = vision.model_type == "clip_vision_model"
        self._attention = ClassAttention(model.model.vision_tower) if is_clip and drop else None

    @property
    def knows_attention(self) -> bool:
        return self._attention is not None

    @classmethod
    def load(cls, path: str, **kwargs: object) -> PreTrainedModel:
        tower = AutoConfig.from_pretrained(path, revision=kwargs.get("revision")).vision_config.model_type
        if tower == "pixtral":
            raise ModelLoadError("LLaVA with a Pixtral tower, such as Pixtral 12B, is not supported")
        return super().load(path, **kwargs)

    def check_image(self, image: ImageInput) -> None:
        tensor_of(image, "pixel_values", np.float32, self._pixel_shape)
        if image.num_tokens != self._num_tokens:
            raise ValueError(f"a picture takes {self._num_tokens} placeholder tokens, got {image.num_tokens}")

    def _grids(self, image: ImageInput) -> tuple[Grid, ...]:
        side = math.isqrt(image.num_tokens)
        class_token = image.num_tokens - side**2  # 1 if the tower's class token is kept
        return ((1, 1),) * class_token + ((side, side),)

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = self._pixels([image.tensors["pixel_values"] for image in images])
        return list(self._model.get_image_features(pixels).pooler_output)

    def _scores(self, images: list[ImageInput]) -> list[torch.Tensor] | list[None]:
        return super()._scores(images) if self._attention is None else list(self._attention.scores())
