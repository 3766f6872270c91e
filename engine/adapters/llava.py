"""LLaVA-1.5 and LLaVA-Interleave: a fixed number of visual tokens per picture, projected features of a tower
with a class token (CLIP) or without one (SigLIP).
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from compressors.base import Grid
from engine.adapters.clip_attention import ClassAttention
from engine.adapters.vision import VisionAdapter, tensor_of
from engine.errors import ModelLoadError
from processing.prompt import ImageInput

_CLASS_TOKEN = ("embeddings.class_embedding", "embeddings.cls_token")
"""The names of such a token's weight in the towers of transformers."""


class LlavaAdapter(VisionAdapter):
    """Adapter for LLaVA-1.5 and LLaVA-Interleave.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[1, 3, image_size, image_size]``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    can_spare_tokens = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        vision, config = model.config.vision_config, model.config
        self._pixel_shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        self._side = vision.image_size // vision.patch_size
        names = [name for name, _ in model.model.vision_tower.named_parameters()]
        class_tokens = sum(name.endswith(_CLASS_TOKEN) for name in names)
        # This leaves out the tower's first feature, whether it is a class token or not.
        drop = config.vision_feature_select_strategy == "default"
        self._num_tokens = self._side**2 + class_tokens - (1 if drop else 0)
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
        # A square with a patch missing is no grid: it does not add up, which the caller notices.
        kept = image.num_tokens - self._side**2
        return ((1, 1),) * kept + ((self._side, self._side),)

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = self._pixels([image.tensors["pixel_values"] for image in images])
        return list(self._model.get_image_features(pixels).pooler_output)

    def _scores(self, images: list[ImageInput]) -> list[torch.Tensor] | list[None]:
        return super()._scores(images) if self._attention is None else list(self._attention.scores())
