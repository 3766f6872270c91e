"""InternVL: tiles of a picture, then the whole picture, with a fixed number of tokens each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from engine.adapters.vision import VisionAdapter, tensor_of
from processing.prompt import ImageInput


class InternVLAdapter(VisionAdapter):
    """Adapter for InternVL.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[tiles, 3, height, width]``.
    """

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    can_spare_tokens = True

    def check_image(self, image: ImageInput) -> None:
        config, vision = self._model.config, self._model.config.vision_config
        pixels = tensor_of(image, "pixel_values", np.float32, (None, vision.num_channels, *vision.image_size))
        if image.num_tokens != (wanted := len(pixels) * config.image_seq_length):
            raise ValueError(f"{len(pixels)} tiles take {wanted} placeholder tokens, got {image.num_tokens}")

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = [image.tensors["pixel_values"] for image in images]
        features = self._model.get_image_features(self._pixels(pixels)).pooler_output
        return [own.flatten(0, 1) for own in features.split([len(tiles) for tiles in pixels])]
