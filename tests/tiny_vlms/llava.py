"""LLaVA-1.5: a CLIP tower, one fixed number of tokens a picture."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.tiny_vlms.common import Parts, make, text_settings

IMAGE_SIZE = 28
PATCH_SIZE = 7
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH_SIZE) ** 2


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=48,
    )


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS_PER_IMAGE,
        tie_word_embeddings=False,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(LlavaForConditionalGeneration, config), processor)
