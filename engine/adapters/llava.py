"""LLaVA-1.5: one fixed number of visual tokens a picture, projected features of a CLIP-style tower."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel

from engine.adapters.base import Adapter
from engine.adapters.causal_lm import CausalLMAdapter
from engine.attention import ATTENTION_NAME
from engine.errors import ModelLoadError
from processing.prompt import ImageInput


class LlavaAdapter(Adapter):
    """``tensors`` of a picture: ``pixel_values``, float32 ``[1, 3, image_size, image_size]``."""

    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        vision, config = model.config.vision_config, model.config
        self._pixel_shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        drop = config.vision_feature_select_strategy == "default"
        self._num_tokens = (vision.image_size // vision.patch_size) ** 2 + (0 if drop else 1)

    @staticmethod
    def load(path: str, **kwargs: object) -> PreTrainedModel:
        text = AutoConfig.from_pretrained(path, revision=kwargs.get("revision")).text_config.model_type
        if text not in CausalLMAdapter.model_types:
            raise ModelLoadError(
                f"LLaVA over a {text!r} language model is not supported; supported: "
                + ", ".join(CausalLMAdapter.model_types)
            )
        return LlavaForConditionalGeneration.from_pretrained(path, **kwargs)

    @property
    def text_config(self) -> PretrainedConfig:
        return self._model.config.text_config

    @property
    def text_model(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self._model.model.language_model
        return decoder

    @property
    def attn_implementation(self) -> dict[str, str]:
        # A bare name would reach the vision tower too.
        return {"text_config": ATTENTION_NAME}

    @property
    def image_token_id(self) -> int:
        return int(self._model.config.image_token_id)

    def check_image(self, image: ImageInput) -> None:
        pixels = image.tensors.get("pixel_values")
        if pixels is None or pixels.shape != self._pixel_shape or pixels.dtype != np.float32:
            found = None if pixels is None else (pixels.shape, str(pixels.dtype))
            raise ValueError(f"pixel_values must be float32 {self._pixel_shape}, got {found}")
        if image.num_tokens != self._num_tokens:
            raise ValueError(f"a picture takes {self._num_tokens} placeholder tokens, got {image.num_tokens}")

    def encode_images(self, images: list[ImageInput]) -> list[torch.Tensor]:
        pixels = torch.from_numpy(np.concatenate([image.tensors["pixel_values"] for image in images]))
        parameter = self._model.model.multi_modal_projector.linear_1.weight
        features = self._model.get_image_features(pixels.to(parameter.device, parameter.dtype)).pooler_output
        return list(features)
