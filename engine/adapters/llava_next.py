"""LLaVA-NeXT (1.6): the whole picture, then its tiles without padding, and a newline token after each row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from compressors.base import Grid
from engine.adapters.vision import VisionAdapter, tensor_of
from processing.prompt import ImageInput


class LlavaNextAdapter(VisionAdapter):
    """Adapter for LLaVA-NeXT.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[1, tiles, 3, image_size, image_size]``, and
    ``image_sizes``, int64 ``[1, 2]``: its original height and width.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    can_spare_tokens = True

    def check_image(self, image: ImageInput) -> None:
        self._check(image, tiled=True)

    def _check(self, image: ImageInput, *, tiled: bool) -> None:
        config, vision = self._model.config, self._model.config.vision_config
        edge = vision.image_size
        size = tensor_of(image, "image_sizes", np.int64, (1, 2))[0].tolist()
        if min(size) < 1:
            raise ValueError(f"image_sizes must be positive, got {size}")
        tiles = int(image_size_to_num_patches(size, config.image_grid_pinpoints, edge)) if tiled else 1
        tensor_of(image, "pixel_values", np.float32, (1, tiles, vision.num_channels, edge, edge))

    def _grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """Return the grid of the whole picture and that of the joined tiles with a newline token per row."""
        vision = self._model.config.vision_config
        side = vision.image_size // vision.patch_size
        if image.tensors["pixel_values"].shape[1] == 1:
            return ((side, side), (1, 1))
        rows, columns = self._unpadded(image.tensors["image_sizes"][0].tolist(), side)
        return ((side, side), (rows, columns + 1))

    def _unpadded(self, size: list[int], side: int) -> Grid:
        """Return the unpadded patch grid of a tiled picture of this (height, width), as in transformers."""
        config = self._model.config
        tiles = get_anyres_image_grid_shape(
            size, config.image_grid_pinpoints, config.vision_config.image_size
        )
        joined = torch.empty(1, *(count * side for count in tiles), device="meta")
        _, rows, columns = unpad_image(joined, size).shape
        return rows, columns

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = self._pixels([image.tensors["pixel_values"][0] for image in images])
        sizes = torch.from_numpy(np.concatenate([image.tensors["image_sizes"] for image in images]))
        return list(self._model.get_image_features(pixels, sizes).pooler_output)
