"""Gemma 3: sliding layers whose window is shorter than a picture, and one that sees all."""

from __future__ import annotations

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tests.tiny_vlms.common import Parts, make, text_settings

IMAGE_SIZE = 32
PATCH_SIZE = 4
TOKENS_PER_IMAGE = 16
SLIDING_WINDOW = 10
NAMES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    tokenizer.add_tokens([*NAMES.values()], special_tokens=True)
    tokenizer._set_model_specific_special_tokens(NAMES)
    tokenizer.chat_template = tokenizer.chat_template.replace("<image>", NAMES["boi_token"])
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        **text_settings(tokenizer),
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    ids = {f"{name[:3]}_token_index": tokenizer.convert_tokens_to_ids(token) for name, token in NAMES.items()}
    config = Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=ids["boi_token_index"],
        eoi_token_index=ids["eoi_token_index"],
        image_token_index=ids["ima_token_index"],
        tie_word_embeddings=False,
    )
    images = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=TOKENS_PER_IMAGE
    )
    return Parts(make(Gemma3ForConditionalGeneration, config), processor)
