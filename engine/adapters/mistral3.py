"""Mistral 3: a Pixtral tower with variable picture sizes; one token per few patches, and row-end tokens."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from compressors.base import Grid
from engine.adapters.vision import VisionAdapter, tensor_of
from processing.prompt import ImageInput


class Mistral3Adapter(VisionAdapter):
    """Adapter for Mistral 3.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[1, 3, height, width]``, and ``image_sizes``, int64
    ``[1, 2]``: the same height and width. Both are multiples of a token's edge length.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral3",)
    text_types: ClassVar[tuple[str, ...]] = ("mistral",)

    def check_image(self, image: ImageInput) -> None:
        config, vision = self._model.config, self._model.config.vision_config
        height, width = tensor_of(image, "image_sizes", np.int64, (1, 2))[0].tolist()
        edge, longest = vision.patch_size * config.spatial_merge_size, vision.image_size
        if not all(edge <= length <= longest and length % edge == 0 for length in (height, width)):
            raise ValueError(
                f"image_sizes must be multiples of {edge} up to {longest}, got {height} and {width}"
            )
        tensor_of(image, "pixel_values", np.float32, (1, vision.num_channels, height, width))
        if image.num_tokens != (wanted := height * width // edge**2):
            raise ValueError(
                f"a picture of {height} x {width} takes {wanted} placeholder tokens, got {image.num_tokens}"
            )

    def _grids(self, image: ImageInput) -> tuple[Grid, ...]:
        edge = self._model.config.vision_config.patch_size * self._model.config.spatial_merge_size
        height, width = image.tensors["image_sizes"][0].tolist()
        return ((height // edge, width // edge),)

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        """Encode pictures one by one: together they would form one sequence with a quadratic mask."""
        found: list[torch.Tensor] = []
        for image in images:
            sizes = torch.from_numpy(image.tensors["image_sizes"])
            found += self._model.get_image_features(
                self._pixels([image.tensors["pixel_values"]]), sizes
            ).pooler_output
        return found
