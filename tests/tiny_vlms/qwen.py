"""Qwen2-VL, Qwen2.5-VL (windows in the tower) and Qwen3-VL (features of early layers of the tower)."""

from __future__ import annotations

from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from processing.loading import without_videos
from tests.tiny_vlms.common import Parts, make, text_settings

PATCH_SIZE = 7
MERGE_SIZE = 2
EDGE = PATCH_SIZE * MERGE_SIZE
"""Pixels of a token's square."""

PLACEHOLDER = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")

# That of Qwen2-VL, without videos and numbers of pictures, and with the BOS that the tiny tokenizer has.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> Parts:
    _add_tokens(tokenizer)
    vision = _vision() | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    config = Qwen2VLConfig(vision_config=vision, text_config=_text(tokenizer, 16), **_common(tokenizer))
    return Parts(make(Qwen2VLForConditionalGeneration, config), _processor(Qwen2VLProcessor, tokenizer))


def build_qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> Parts:
    _add_tokens(tokenizer)
    vision = _vision() | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 2 * EDGE,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=_text(tokenizer, 16), **_common(tokenizer))
    return Parts(make(Qwen2_5_VLForConditionalGeneration, config), _processor(Qwen2_5_VLProcessor, tokenizer))


def build_qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> Parts:
    _add_tokens(tokenizer)
    vision = _vision() | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
    }
    text = _text(tokenizer, 32) | {"head_dim": 32}
    text["rope_parameters"] |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **_common(tokenizer))
    return Parts(make(Qwen3VLForConditionalGeneration, config), _processor(Qwen3VLProcessor, tokenizer))


def _add_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": list(PLACEHOLDER)})
    tokenizer.image_token = PLACEHOLDER[1]


def _vision() -> dict[str, Any]:
    return {
        "depth": 3,
        "num_heads": 4,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": 2,
    }


def _text(tokenizer: PreTrainedTokenizerFast, head_dim: int) -> dict[str, Any]:
    """Rotary sections that fill half of ``head_dim``. A small base, so that positions matter."""
    sections = [head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16]
    rotary = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": sections}
    return text_settings(tokenizer) | {"rope_parameters": rotary}


def _common(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids(PLACEHOLDER[1]),
        "video_token_id": len(tokenizer) + 1,
        "tie_word_embeddings": False,
    }


def _processor(kind: type[ProcessorMixin], tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH_SIZE,
        merge_size=MERGE_SIZE,
        size={"shortest_edge": 4 * EDGE**2, "longest_edge": 64 * EDGE**2},
    )
    processor: ProcessorMixin = without_videos(kind)(images, tokenizer, chat_template=CHAT_TEMPLATE)
    return processor
