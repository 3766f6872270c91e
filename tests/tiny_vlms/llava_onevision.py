"""LLaVA-OneVision: tiles for a picture alone, shrunk where there are many."""

from __future__ import annotations

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from processing.loading import without_videos
from tests.tiny_vlms.common import Parts, make, text_settings
from tests.tiny_vlms.llava import IMAGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE

# The last one holds more tiles than anyres_max_2 keeps at full size.
GRIDS = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows, columns in ((1, 1), (2, 1), (2, 2), (1, 3))]
MAX_TILES = "anyres_max_2"


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRIDS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=MAX_TILES,
        tie_word_embeddings=False,
    )
    images = LlavaOnevisionImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_grid_pinpoints=GRIDS
    )
    processor = without_videos(LlavaOnevisionProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        num_image_tokens=TOKENS_PER_IMAGE,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=MAX_TILES,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(LlavaOnevisionForConditionalGeneration, config), processor)
