"""InternVL: dynamic tiles over a Qwen2 language model."""

from __future__ import annotations

from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from processing.loading import without_videos
from tests.tiny_vlms.common import Parts, make, text_settings

TILE = 28
PATCH_SIZE = 7
TOKENS_PER_TILE = (TILE // PATCH_SIZE // 2) ** 2
NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    tokenizer.add_tokens([*NAMES.values()], special_tokens=True)
    tokenizer._set_model_specific_special_tokens(NAMES)
    template = tokenizer.chat_template.replace("<image>", NAMES["context_image_token"])
    tokenizer.chat_template = template
    vision = InternVLVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[TILE, TILE],
        patch_size=[PATCH_SIZE, PATCH_SIZE],
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_settings(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(NAMES["context_image_token"]),
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    processor = without_videos(InternVLProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_TILE,
        chat_template=template,
    )
    return Parts(make(InternVLForConditionalGeneration, config), processor)
