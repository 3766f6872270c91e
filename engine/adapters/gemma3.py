"""Gemma 3: the tokens of a picture attend to each other in both directions, in sliding-window layers too."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel

from engine.adapters.vision import VisionAdapter, tensor_of
from engine.errors import ModelLoadError
from processing.prompt import ImageInput


class Gemma3Adapter(VisionAdapter):
    """Adapter for Gemma 3.

    ``tensors`` of a picture: ``pixel_values``, float32 ``[tiles, 3, image_size, image_size]``: the whole
    picture, and its crops if the processor uses pan and scan.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    text_types: ClassVar[tuple[str, ...]] = ("gemma3_text",)

    @classmethod
    def load(cls, path: str, **kwargs: object) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(path, revision=kwargs.get("revision"))
        text = config.text_config
        if text.use_bidirectional_attention or text.final_logit_softcapping or text.attn_logit_softcapping:
            raise ModelLoadError("Gemma 3 with soft caps, or with text in both directions, is not supported")
        if config.image_token_id >= text.vocab_size:
            raise ModelLoadError("Gemma 3 with an image token that has no embedding is not supported")
        return super().load(path, **kwargs)

    @property
    def longest_block(self) -> int:
        return int(self._model.config.mm_tokens_per_image)

    def check_image(self, image: ImageInput) -> None:
        vision, length = self._model.config.vision_config, self.longest_block
        edge = vision.image_size
        pixels = tensor_of(image, "pixel_values", np.float32, (None, vision.num_channels, edge, edge))
        if [n for _, n in image.spans] != [length] * len(pixels):
            raise ValueError(
                f"{len(pixels)} tiles take as many runs of {length} placeholder tokens, got {image.spans}"
            )

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = [image.tensors["pixel_values"] for image in images]
        features = self._model.get_image_features(self._pixels(pixels)).pooler_output
        return [own.flatten(0, 1) for own in features.split([len(tiles) for tiles in pixels])]
