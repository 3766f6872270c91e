"""Tiny random-weight checkpoints of real architectures, as a hub would hold them (no network, float32).

A model that repeats one token passes every comparison, so the weights are drawn large: greedy outputs
vary, another picture changes them, and the gaps between logits dwarf rounding. ``test_models.py`` holds
that. Knows transformers and tokenizers, nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from tests.tokenizer import tiny_tokenizer

Family = Literal["llava", "llama", "qwen2", "qwen3", "mistral", "mistral_sliding"]

FAMILIES: tuple[Family, ...] = ("llava", "llama", "qwen2", "qwen3", "mistral", "mistral_sliding")
TEXT_FAMILIES: tuple[Family, ...] = FAMILIES[1:]

IMAGE_SIZE = 28
PATCH_SIZE = 7
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH_SIZE) ** 2
SLIDING_WINDOW = 12
MAX_MODEL_LEN = 512


def build_tiny(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny checkpoint of ``family`` with tokenizer and chat template in ``folder``; returns it."""
    tokenizer = tiny_tokenizer()
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_MODEL_LEN,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    if family == "llava":
        model = _llava(common, tokenizer.convert_tokens_to_ids("<image>"))
    else:
        model = _TEXT_MODELS[family](common)
    _draw_weights(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    if family == "llava":
        _llava_processor(tokenizer).save_pretrained(folder)
    else:
        tokenizer.save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of coarse random blocks: different seeds survive any resizing as different pictures."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


def _make(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Construct without touching the global generator; ``_draw_weights`` replaces every value."""
    with torch.random.fork_rng(devices=[]):
        return model_class(config).to(torch.float32).eval()


# One architecture each, differing where engines go wrong: tied heads, biases, q/k norms, head_dim that is
# not hidden / heads, full and sliding attention.
_TEXT_MODELS: dict[str, Callable[[dict[str, Any]], PreTrainedModel]] = {
    "llama": lambda common: _make(LlamaForCausalLM, LlamaConfig(**common)),
    "qwen2": lambda common: _make(Qwen2ForCausalLM, Qwen2Config(**common | {"tie_word_embeddings": True})),
    "qwen3": lambda common: _make(Qwen3ForCausalLM, Qwen3Config(**common, head_dim=32)),
    "mistral": lambda common: _make(
        MistralForCausalLM, MistralConfig(**common, head_dim=16, sliding_window=None)
    ),
    "mistral_sliding": lambda common: _make(
        MistralForCausalLM, MistralConfig(**common, head_dim=16, sliding_window=SLIDING_WINDOW)
    ),
}


def _llava(common: dict[str, Any], image_token_id: int) -> PreTrainedModel:
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=48,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**common),
        image_token_index=image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS_PER_IMAGE,
        tie_word_embeddings=False,
    )
    return _make(LlavaForConditionalGeneration, config)


def _llava_processor(tokenizer: Any) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Every weight from one local generator, in the order of its name.

    Matrices get a gain of about 2 (std = 2 / sqrt(fan_in)), embeddings a deviation of 1, norms stay near
    1, biases near 0: deep enough in the nonlinear range that a token or a pixel changes what follows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name and "patch_embedding" not in name:
            parameter.copy_(noise)
        elif parameter.dim() >= 2:
            fan_in = math.prod(parameter.shape[1:])
            parameter.copy_(noise * 2.0 / math.sqrt(fan_in))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.2)
        else:
            parameter.copy_(1.0 + 0.2 * noise)
