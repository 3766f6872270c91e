"""LLaVA-NeXT: tiles of a picture in the best of a few grids."""

from __future__ import annotations

from transformers import (
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.tiny_vlms.common import Parts, make, text_settings
from tests.tiny_vlms.llava import IMAGE_SIZE, PATCH_SIZE, vision_config

GRIDS = [[IMAGE_SIZE * rows, IMAGE_SIZE * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (1, 3))]


def build(tokenizer: PreTrainedTokenizerFast) -> Parts:
    config = LlavaNextConfig(
        vision_config=vision_config(),
        text_config=LlamaConfig(**text_settings(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRIDS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=False,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_grid_pinpoints=GRIDS,
    )
    processor = LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return Parts(make(LlavaNextForConditionalGeneration, config), processor)
