"""Mistral 3: a Pixtral tower and a Mistral language model."""

from __future__ import annotations

from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from processing.pixtral import pillow_pixtral_processor
from tests.tiny_vlms.common import Parts, make, text_settings

PATCH_SIZE = 7
MERGE = 2
LONGEST_EDGE = 84
NAMES = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    tokenizer.add_tokens([*NAMES], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<image>", "[IMG]")
    vision = PixtralVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=12,
        image_size=LONGEST_EDGE,
        patch_size=PATCH_SIZE,
    )
    config = Mistral3Config(
        vision_config=vision,
        text_config=MistralConfig(**text_settings(tokenizer), head_dim=16, sliding_window=None),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=MERGE,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    images = PixtralImageProcessorPil(
        size={"longest_edge": LONGEST_EDGE}, patch_size={"height": PATCH_SIZE, "width": PATCH_SIZE}
    )
    processor = pillow_pixtral_processor()(
        images,
        tokenizer,
        patch_size=PATCH_SIZE,
        spatial_merge_size=MERGE,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(Mistral3ForConditionalGeneration, config), processor)
