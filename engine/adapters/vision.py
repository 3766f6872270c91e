"""The common part of adapters for families with a vision tower, a projector and a plain decoder."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel

from compressors.base import Grid
from engine.adapters.base import Adapter, Encoded
from engine.adapters.causal_lm import CausalLMAdapter
from engine.attention import ATTENTION_NAME
from engine.errors import ModelLoadError
from processing.prompt import ImageInput


class VisionAdapter(Adapter):
    """Base adapter: a family defines picture tensors (``check_image``) and their encoding (``_encode``)."""

    model_types: ClassVar[tuple[str, ...]] = ()
    text_types: ClassVar[tuple[str, ...]] = CausalLMAdapter.model_types
    """The supported language models."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @classmethod
    def load(cls, path: str, **kwargs: object) -> PreTrainedModel:
        config = AutoConfig.from_pretrained(path, revision=kwargs.get("revision"))
        if (text := config.text_config.model_type) not in cls.text_types:
            raise ModelLoadError(
                f"{config.model_type} over a {text!r} language model is not supported; "
                f"supported: {', '.join(cls.text_types)}"
            )
        return AutoModelForImageTextToText.from_pretrained(path, **kwargs)

    @property
    def text_config(self) -> PretrainedConfig:
        return self._model.config.text_config

    @property
    def text_model(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self._model.model.language_model
        return decoder

    @property
    def attn_implementation(self) -> dict[str, str]:
        # A plain name would affect the vision tower, too.
        return {"text_config": ATTENTION_NAME}

    @property
    def image_token_id(self) -> int:
        return int(self._model.config.image_token_id)

    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        """Encode pictures. Raises ``ValueError`` if a picture's embeddings do not match its placeholders."""
        values = self._encode(images)
        for image, own in zip(images, values, strict=True):
            if len(own) != image.num_tokens:
                raise ValueError(
                    f"a picture of {len(own)} embeddings has {image.num_tokens} placeholder tokens"
                )
        return [Encoded(own, scores) for own, scores in zip(values, self._scores(images), strict=True)]

    def grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """Return the family's grids if they add up to the picture's tokens, else the default.

        Removing the padding may leave nothing of a strip's tiles: such empty grids are left out.
        """
        found = tuple((rows, columns) for rows, columns in self._grids(image) if rows and columns)
        fits = sum(rows * columns for rows, columns in found) == image.num_tokens
        return found if fits else super().grids(image)

    def _grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """Return one square grid per tile of ``pixel_values``: right for families with plain tiles."""
        tiles = len(image.tensors["pixel_values"])
        side = math.isqrt(image.num_tokens // tiles)
        return ((side, side),) * tiles

    def _encode(self, images: list[ImageInput]) -> list[torch.Tensor]:
        raise NotImplementedError

    def _scores(self, images: list[ImageInput]) -> list[torch.Tensor] | list[None]:
        """Return the tower's attention scores of the pictures that were just encoded."""
        return [None] * len(images)

    def _pixels(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """Concatenate arrays along their first axis, on the model's device and in its dtype."""
        return torch.from_numpy(np.concatenate(arrays)).to(self._model.device, self._model.dtype)


def tensor_of(
    image: ImageInput, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> np.ndarray:
    """Return a tensor of a picture. Raises ``ValueError`` unless it has this dtype and shape.

    ``None`` in the shape stands for any length except 0.
    """
    found = image.tensors.get(name)
    if (
        found is None
        or found.dtype != dtype
        or found.ndim != len(shape)
        or not all(
            have == want or (want is None and have) for have, want in zip(found.shape, shape, strict=True)
        )
    ):
        wanted = f"{np.dtype(dtype)} {['any' if want is None else want for want in shape]}"
        told = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
        raise ValueError(f"{name} must be {wanted}, got {told}")
    return found
