"""The reference: the model run by plain transformers on the device under test."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from processing.loading import load_processor

EPSILON = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 0.5}
"""Tolerance: a token may differ if the most likely one is ahead of it by less than this, in logits."""


class Reference:
    """The model in plain transformers.

    ``weights``: the dtype that weights are rounded to. ``dtype``: the dtype of the computation. ``sees``:
    whether the model takes pictures.
    """

    def __init__(
        self, model: str, device: torch.device, weights: torch.dtype, dtype: torch.dtype, *, sees: bool
    ) -> None:
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        loaded = kind.from_pretrained(model, dtype=weights, use_safetensors=True)
        self._model = loaded.eval().to(device, dtype)
        config = AutoConfig.from_pretrained(model)
        self._processor = load_processor(model, config) if sees else AutoTokenizer.from_pretrained(model)

    def inputs(self, text: str, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the inputs of ``generate`` for a user's message."""
        content: Any = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        chat = [{"role": "user", "content": content if images else text}]
        rendered = self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        given = {"images": images} if images else {}
        made = self._processor(text=[rendered], add_special_tokens=False, return_tensors="pt", **given)
        model: Any = self._model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in made.items()
        }

    @torch.inference_mode()
    def generate(self, inputs: dict[str, torch.Tensor], num_tokens: int) -> list[int]:
        out = self._model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False)
        tokens: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
        return tokens

    @torch.inference_mode()
    def largest_gap(self, inputs: dict[str, torch.Tensor], token_ids: list[int]) -> float:
        """Return the largest distance, in logits, of any of ``token_ids`` to the most likely token there."""
        length = inputs["input_ids"].shape[1]
        more = torch.tensor([token_ids], device=inputs["input_ids"].device)
        fills = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        longer = {
            name: torch.cat([value, fills.get(name, torch.zeros_like(more)).to(value.dtype)], dim=1)
            if value.shape[:2] == (1, length)
            else value
            for name, value in inputs.items()
        }
        logits = self._model(**longer).logits[0, length - 1 : -1].float()
        return float((logits.max(dim=-1).values - logits.gather(1, more[0, :, None])[:, 0]).max())
