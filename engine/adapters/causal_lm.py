"""Text-only causal language models: Llama, Mistral, Qwen2, Qwen3."""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from engine.adapters.base import Adapter, Encoded
from engine.attention import ATTENTION_NAME
from processing.prompt import ImageInput


class CausalLMAdapter(Adapter):
    """Adapter for models whose decoder is ``model.model`` and whose head is ``model.lm_head``."""

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3")

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    @staticmethod
    def load(path: str, **kwargs: object) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path, **kwargs)

    @property
    def text_config(self) -> PretrainedConfig:
        return self._model.config

    @property
    def text_model(self) -> torch.nn.Module:
        decoder: torch.nn.Module = self._model.model
        return decoder

    @property
    def attn_implementation(self) -> str:
        return ATTENTION_NAME

    @property
    def image_token_id(self) -> None:
        return None

    def check_image(self, image: ImageInput) -> None:
        raise ValueError(f"this model takes text only, got a picture of {image.num_tokens} tokens")

    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        raise NotImplementedError("check_image refuses every picture")
