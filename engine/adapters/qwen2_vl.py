"""Qwen2-VL and Qwen2.5-VL: pictures of any size as grids of patches, positions with three axes."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from compressors.base import Grid
from engine.adapters.vision import VisionAdapter, tensor_of
from engine.mrope import Positions, grid_positions
from processing.prompt import ImageInput, Prompt


class Qwen2VLAdapter(VisionAdapter):
    """Adapter for Qwen2-VL and Qwen2.5-VL.

    ``tensors`` of a picture: ``image_grid_thw``, int64 ``[1, 3]``: 1, and its height and width in patches;
    ``pixel_values``, float32 ``[height * width, values per patch]``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    text_types: ClassVar[tuple[str, ...]] = ("qwen2_vl_text", "qwen2_5_vl_text")

    @property
    def _merge_size(self) -> int:
        """The side length of the square of patches that becomes one token."""
        return int(self._model.config.vision_config.spatial_merge_size)

    def check_image(self, image: ImageInput) -> None:
        vision, merge = self._model.config.vision_config, self._merge_size
        grid = tensor_of(image, "image_grid_thw", np.int64, (1, 3))
        frames, rows, columns = grid[0].tolist()
        if frames != 1 or min(rows, columns) < merge or rows % merge or columns % merge:
            raise ValueError(f"image_grid_thw must be 1 and two multiples of {merge}, got {grid[0].tolist()}")
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        tensor_of(image, "pixel_values", np.float32, (rows * columns, patch))
        wanted = rows * columns // merge**2
        if [length for _, length in image.spans] != [wanted]:
            raise ValueError(f"this picture takes {wanted} placeholder tokens in a row, got {image.spans}")

    def positions(self, prompt: Prompt) -> Positions:
        return grid_positions(len(prompt.token_ids), prompt.images, self._merge_size)

    def _grids(self, image: ImageInput) -> tuple[Grid, ...]:
        _, rows, columns = image.tensors["image_grid_thw"][0].tolist()
        return ((rows // self._merge_size, columns // self._merge_size),)

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        return list(self._model.get_image_features(*self._batch(images)).pooler_output)

    def _batch(self, images: list[ImageInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patches of all pictures, one after the other, and their grids ``[num_images, 3]``."""
        grids = np.concatenate([image.tensors["image_grid_thw"] for image in images])
        pixels = self._pixels([image.tensors["pixel_values"] for image in images])
        return pixels, torch.from_numpy(grids).to(pixels.device)
