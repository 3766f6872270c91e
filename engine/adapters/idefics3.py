"""Idefics3 and SmolVLM: a picture is split into equal tiles, the whole picture last, with text in between."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from engine.adapters.vision import VisionAdapter, tensor_of
from processing.prompt import ImageInput


class Idefics3Adapter(VisionAdapter):
    """Adapter for Idefics3 and SmolVLM.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[tiles, 3, image_size, image_size]``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    can_spare_tokens = True

    @property
    def text_model(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self._model.model.text_model
        return decoder

    def check_image(self, image: ImageInput) -> None:
        vision = self._model.config.vision_config
        edge, scale = vision.image_size, self._model.config.scale_factor
        pixels = tensor_of(image, "pixel_values", np.float32, (None, vision.num_channels, edge, edge))
        wanted = len(pixels) * (edge // vision.patch_size // scale) ** 2
        if image.num_tokens != wanted:
            raise ValueError(f"{len(pixels)} tiles take {wanted} placeholder tokens, got {image.num_tokens}")

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = self._pixels([image.tensors["pixel_values"] for image in images])
        (features,) = self._model.model.get_image_features(pixels.unsqueeze(0)).pooler_output
        # transformers treats all-zero tiles as padding and drops them. That must not shift the others.
        if len(features) != (wanted := sum(image.num_tokens for image in images)):
            raise ValueError(f"{len(features)} embeddings for {wanted} placeholder tokens")
        return list(features.split([image.num_tokens for image in images]))
