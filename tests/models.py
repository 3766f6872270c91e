"""Tiny random-weight checkpoints of real architectures, as a hub would hold them (no network, float32).

A model that repeats one token passes every comparison, so the weights are drawn large: greedy outputs
vary, another picture changes them, and the gaps between logits dwarf rounding. ``test_models.py`` holds
that. Knows transformers and tokenizers, nothing of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from tests.tiny_vlms import gemma3, idefics3, internvl, llava, llava_next, llava_onevision, mistral3, qwen
from tests.tiny_vlms.common import MAX_MODEL_LEN, Builder, make, text_settings
from tests.tiny_vlms.llava import IMAGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE
from tests.tokenizer import tiny_tokenizer

__all__ = ["IMAGE_SIZE", "MAX_MODEL_LEN", "PATCH_SIZE", "TOKENS_PER_IMAGE"]

SLIDING_WINDOW = 12

# One architecture each, differing where engines go wrong: tied heads, biases, q/k norms, head_dim that is
# not hidden / heads, full and sliding attention.
TEXT_MODELS: Mapping[str, Callable[[dict[str, Any]], PreTrainedModel]] = {
    "llama": lambda common: make(LlamaForCausalLM, LlamaConfig(**common)),
    "qwen2": lambda common: make(Qwen2ForCausalLM, Qwen2Config(**common | {"tie_word_embeddings": True})),
    "qwen3": lambda common: make(Qwen3ForCausalLM, Qwen3Config(**common, head_dim=32)),
    "mistral": lambda common: make(
        MistralForCausalLM, MistralConfig(**common, head_dim=16, sliding_window=None)
    ),
    "mistral_sliding": lambda common: make(
        MistralForCausalLM, MistralConfig(**common, head_dim=16, sliding_window=SLIDING_WINDOW)
    ),
}

# Every family that sees pictures.
VLMS: Mapping[str, Builder] = {
    "llava": llava.build,
    "llava_next": llava_next.build,
    "llava_onevision": llava_onevision.build,
    "idefics3": idefics3.build_idefics3,
    "smolvlm": idefics3.build_smolvlm,
    "internvl": internvl.build,
    "mistral3": mistral3.build,
    "gemma3": gemma3.build,
    "qwen2_vl": qwen.build_qwen2_vl,
    "qwen2_5_vl": qwen.build_qwen2_5_vl,
    "qwen3_vl": qwen.build_qwen3_vl,
    "llava_siglip": llava.build_of_siglip,
    "llava_full": llava.build_with_class_token,
}

Family = str
"""A key of one of the two, or of both: ``llava_next+mistral`` has another language model than usual."""

TEXT_FAMILIES: tuple[Family, ...] = tuple(TEXT_MODELS)
# Those that every golden test runs for; the other families that see pictures have tests of their own.
FAMILIES: tuple[Family, ...] = ("llava", *TEXT_FAMILIES)


def build_tiny(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """Save a tiny checkpoint of ``family`` with tokenizer and chat template in ``folder``; returns it."""
    tokenizer = tiny_tokenizer()
    saved: Any = tokenizer
    sees, _, text = family.partition("+")
    if sees in VLMS:
        model, saved = VLMS[sees](tokenizer)
        model = _with_text_model(model, text, text_settings(tokenizer)) if text else model
    else:
        model = TEXT_MODELS[family](text_settings(tokenizer))
    _draw_weights(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    saved.save_pretrained(folder)
    return folder


def _with_text_model(model: PreTrainedModel, text: Family, common: dict[str, Any]) -> PreTrainedModel:
    config = model.config
    config.text_config = TEXT_MODELS[text](common).config
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    return make(type(model), config)


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A picture of coarse random blocks: different seeds survive any resizing as different pictures."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Every weight from one local generator, in the order of its name.

    Matrices get a gain of about 2 (std = 2 / sqrt(fan_in)), embeddings a deviation of 1, norms stay near
    1, biases near 0: deep enough in the nonlinear range that a token or a pixel changes what follows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "embed" in name and "patch_embed" not in name:
            parameter.copy_(noise)
        elif parameter.dim() >= 2:
            fan_in = math.prod(parameter.shape[1:])
            parameter.copy_(noise * 2.0 / math.sqrt(fan_in))
        elif name.endswith("bias"):
            parameter.copy_(noise * 0.2)
        else:
            parameter.copy_(1.0 + 0.2 * noise)
