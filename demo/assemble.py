"""Assembles language model, vision tower, projector and delta into a LLaVA checkpoint for transformers.

Knows transformers' classes and files, but not caching.
"""

import json
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from demo.adapter import read_weights, split
from demo.model import IMAGE_SIZE, IMAGE_TOKEN, IMAGE_TOKEN_ID, MEAN, PATCH_SIZE, STD, llava_config

TEMPLATE = Path(__file__).parent / "assets" / "chat_template.jinja"


def assemble(language: Any, weights: Path) -> LlavaForConditionalGeneration:
    """Assemble the whole model in float32 and round it to float16.

    ``language`` is a LlamaForCausalLM; the trained weights come from the folder ``weights``.
    """
    tensors, vision = read_weights(weights)
    eyes, delta = split(tensors)
    model = LlavaForConditionalGeneration(llava_config(language.config, CLIPVisionConfig(**vision))).eval()
    state = {f"model.{name}": tensor.float() for name, tensor in eyes.items()}
    for name, tensor in language.state_dict().items():
        place = name if name.startswith("lm_head.") else f"model.language_{name}"
        state[place] = tensor.float()
    for layer, (down, up) in delta.items():
        state[f"model.language_model.{layer}.weight"] = (
            state[f"model.language_model.{layer}.weight"] + up.float() @ down.float()
        )
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if "position_ids" not in name and "lm_head" not in name]
    if missing or unexpected:
        raise ValueError(f"weights do not fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}")
    model.tie_weights()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 2
    model.generation_config.bos_token_id = 1
    model.generation_config.do_sample = False  # sampling does not improve answers about a picture
    model.half()
    model.config.text_config.dtype = model.dtype
    model.config.text_config._name_or_path = ""
    return model


def processor(tokenizer: Any) -> LlavaProcessor:
    """Create the processor: SmolLM2's tokenizer with one token renamed to ``<image>``, and square images."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessorPil(
        do_resize=True,
        size=size,
        do_center_crop=False,
        crop_size=size,
        image_mean=list(MEAN),
        image_std=list(STD),
        do_convert_rgb=True,
    )
    template = TEMPLATE.read_text()
    return LlavaProcessor(
        image_processor=images,
        tokenizer=_with_image_token(tokenizer, template),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def _with_image_token(tokenizer: Any, template: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    old = next(token for token in spec["added_tokens"] if token["id"] == IMAGE_TOKEN_ID)
    vocab = spec["model"]["vocab"]
    vocab.pop(old["content"], None)
    vocab[IMAGE_TOKEN] = IMAGE_TOKEN_ID
    old.update(content=IMAGE_TOKEN, special=True)
    renamed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)),
        bos_token="<|im_start|>",  # noqa: S106
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )
    renamed.chat_template = template
    return renamed
