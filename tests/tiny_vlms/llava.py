"""LLaVA-1.5 and LLaVA-Interleave: one fixed number of tokens a picture, of a CLIP tower or of a SigLIP tower,
which has no class token.
"""

from __future__ import annotations

from typing import Literal

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.image_processing_backends import PilBackend
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny_vlms.common import Parts, make, text_settings

IMAGE_SIZE = 28
PATCH_SIZE = 7
TOKENS_PER_IMAGE = (IMAGE_SIZE // PATCH_SIZE) ** 2

Strategy = Literal["default", "full"]


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
    return _of_clip(tokenizer, "default")


def build_with_class_token(tokenizer: PreTrainedTokenizerFast) -> Parts:
    return _of_clip(tokenizer, "full")


def _of_clip(tokenizer: PreTrainedTokenizerFast, strategy: Strategy) -> Parts:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return _build(tokenizer, vision_config(), images, strategy, layer=-2, class_tokens=1)


def build_of_siglip(tokenizer: PreTrainedTokenizerFast) -> Parts:
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    images = SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    return _build(tokenizer, vision, images, "full", layer=-1, class_tokens=0)


def _build(
    tokenizer: PreTrainedTokenizerFast,
    vision: PreTrainedConfig,
    images: PilBackend,
    strategy: Strategy,
    *,
    layer: int,
    class_tokens: int,
) -> Parts:
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=TOKENS_PER_IMAGE,
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=class_tokens,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(LlavaForConditionalGeneration, config), processor)
