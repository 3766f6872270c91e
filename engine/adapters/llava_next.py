"""LLaVA-NeXT (1.6): the whole picture, then tiles of it without their padding, a newline after each row."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from engine.adapters.vision import VisionAdapter, tensor_of
from processing.prompt import ImageInput


class LlavaNextAdapter(VisionAdapter):
    """``tensors`` of a picture: ``pixel_values``, float32 ``[1, tiles, 3, image_size, image_size]``, and
    ``image_sizes``, int64 ``[1, 2]``: the height and width that the picture came with.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)

    def check_image(self, image: ImageInput) -> None:
        vision = self._model.config.vision_config
        edge = vision.image_size
        pixels = tensor_of(image, "pixel_values", np.float32, (1, None, vision.num_channels, edge, edge))
        size = tensor_of(image, "image_sizes", np.int64, (1, 2))
        if size.min() < 1:
            raise ValueError(f"image_sizes must be positive, got {size.tolist()}")
        if pixels.shape[1] != (tiles := self._num_tiles(size[0])):
            raise ValueError(
                f"a picture of {size[0].tolist()} pixels takes {tiles} tiles, got {pixels.shape[1]}"
            )

    def _num_tiles(self, size: np.ndarray) -> int:
        """Tiles of a picture of this height and width, itself included."""
        config = self._model.config
        return int(
            image_size_to_num_patches(
                size.tolist(), config.image_grid_pinpoints, config.vision_config.image_size
            )
        )

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = self._pixels([image.tensors["pixel_values"][0] for image in images])
        sizes = torch.from_numpy(np.concatenate([image.tensors["image_sizes"] for image in images]))
        return list(self._model.get_image_features(pixels, sizes).pooler_output)
