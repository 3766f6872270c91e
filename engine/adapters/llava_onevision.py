"""LLaVA-OneVision: the only picture of a chat is tiled as in LLaVA-NeXT; one of several pictures is not."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch

from compressors.base import Grid
from engine.adapters.llava_next import LlavaNextAdapter
from processing.prompt import ImageInput


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """Adapter for LLaVA-OneVision, with ``tensors`` as in LLaVA-NeXT.

    A picture that is not tiled has one tile; a tiled one has at least two, since the whole picture comes
    first.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)

    def check_image(self, image: ImageInput) -> None:
        pixels = image.tensors.get("pixel_values")
        self._check(image, tiled=pixels is None or pixels.ndim < 2 or pixels.shape[1] != 1)

    def _unpadded(self, size: list[int], side: int) -> Grid:
        """As in LLaVA-NeXT, then shrunk to about the number of tiles given by ``vision_aspect_ratio``."""
        rows, columns = super()._unpadded(size, side)
        most = int(self._model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        """Encode tiled pictures together, then the others: transformers decides once for a whole chat."""
        tiled = [image.tensors["pixel_values"].shape[1] > 1 for image in images]
        found: list[torch.Tensor] = [torch.empty(0)] * len(images)
        for wanted in (True, False):
            chosen = [i for i, one in enumerate(tiled) if one is wanted]
            if not chosen:
                continue
            own = [images[i].tensors for i in chosen]
            # transformers tiles a chat of one picture but not one of several; a count above the number of
            # pictures does no harm.
            counts = None if wanted else [max(2, len(own))]
            encoded = self._model.get_image_features(
                self._pixels([tensors["pixel_values"][0] for tensors in own]),
                torch.from_numpy(np.concatenate([tensors["image_sizes"] for tensors in own])),
                batch_num_images=counts,
            )
            for i, features in zip(chosen, encoded.pooler_output, strict=True):
                found[i] = features
        return found
