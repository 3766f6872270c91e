"""Idefics3 and SmolVLM: pictures split into tiles with their places written before them."""

from __future__ import annotations

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny_vlms.common import Parts, make, text_settings

TILE = 24
PATCH_SIZE = 6
SCALE = 2
LONGEST_EDGE = 2 * TILE


def build_idefics3(tokenizer: PreTrainedTokenizerFast) -> Parts:
    return _build(tokenizer, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil)


def build_smolvlm(tokenizer: PreTrainedTokenizerFast) -> Parts:
    return _build(tokenizer, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil)


def _build(
    tokenizer: PreTrainedTokenizerFast,
    config_class: type[Idefics3Config | SmolVLMConfig],
    model_class: type[Idefics3ForConditionalGeneration | SmolVLMForConditionalGeneration],
    images_class: type[Idefics3ImageProcessorPil | SmolVLMImageProcessorPil],
) -> Parts:
    places = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    named = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_tokens([*named, *places], special_tokens=True)
    common = text_settings(tokenizer)
    config = config_class(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH_SIZE,
        },
        text_config=LlamaConfig(**common),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=SCALE,
        pad_token_id=common["pad_token_id"],
        tie_word_embeddings=False,
    )
    images = images_class(size={"longest_edge": LONGEST_EDGE}, max_image_size={"longest_edge": TILE})
    processor = Idefics3Processor(
        images,
        tokenizer,
        image_seq_len=(TILE // PATCH_SIZE // SCALE) ** 2,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(model_class, config), processor)
