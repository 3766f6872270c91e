"""The tiny checkpoints are fit to compare with: they vary, they see, and they are the same every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.models import FAMILIES, TEXT_FAMILIES, TOKENS_PER_IMAGE, Family, build_tiny, picture

NUM_TOKENS = 24


def text_output(folder: Path, text: str) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(text, return_tensors="pt")
    return greedy(model, dict(inputs))


def picture_inputs(folder: Path, seed: int) -> dict[str, Any]:
    processor = AutoProcessor.from_pretrained(folder)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[picture(seed)], add_special_tokens=False, return_tensors="pt")
    return dict(inputs)


def greedy(model: Any, inputs: dict[str, Any]) -> list[int]:
    output = model.generate(**inputs, max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS, do_sample=False)
    return [int(token) for token in output[0, inputs["input_ids"].shape[1] :]]


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_text_outputs_vary_within_and_between_prompts(family: Family, tmp_path: Path) -> None:
    folder = build_tiny(family, tmp_path)
    first = text_output(folder, "The quick brown fox")
    second = text_output(folder, "Describe the image")
    assert len(set(first)) > NUM_TOKENS // 3
    assert first != second


def test_another_picture_changes_the_output(tmp_path: Path) -> None:
    folder = build_tiny("llava", tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = picture_inputs(folder, 0)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == TOKENS_PER_IMAGE
    outputs = [greedy(model, picture_inputs(folder, seed)) for seed in range(4)]
    assert len({tuple(output) for output in outputs}) == len(outputs)
    assert all(len(set(output)) > NUM_TOKENS // 3 for output in outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_seed_same_bytes_and_global_noise_untouched(family: Family, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    one = build_tiny(family, tmp_path / "one")
    two = build_tiny(family, tmp_path / "two")
    other = build_tiny(family, tmp_path / "other", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, two, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()


def test_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build_tiny("llama", tmp_path))
    text = "Ünïcode 🦊 家族 👩‍👩‍👧 and\ttabs\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer.encode("🦊", add_special_tokens=False)) > 1


def test_tokenizer_adds_the_bos_that_the_template_holds_already(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(build_tiny("llama", tmp_path))
    chat = [{"role": "user", "content": "hello"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(rendered)[:2] == [tokenizer.bos_token_id] * 2
    assert tokenizer.encode(rendered, add_special_tokens=False).count(tokenizer.bos_token_id) == 1
