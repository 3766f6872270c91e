"""The offline API answers like transformers and keeps the order of its chats."""

from __future__ import annotations

import pytest

from engine.llm import LLM
from processing.chat import ChatMessage, ImagePart, TextPart
from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden
from tests.models import picture


def test_a_batch_of_chats_with_pictures(tiny: BuildCheckpoint, capsys: pytest.CaptureFixture[str]) -> None:
    golden = load_golden(tiny("llava"))
    llm = LLM(str(golden.folder), device="cpu", kv_cache_memory=1 << 23)
    seeds: list[tuple[int, ...]] = [(), (1,), (2, 3), ()]
    texts = ["Hello", "What is this?", "Compare.", "A longer question, about nothing at all."]
    chats = [
        [ChatMessage("user", [*(ImagePart(picture(s)) for s in own), TextPart(text)] if own else text)]
        for text, own in zip(texts, seeds, strict=True)
    ]
    answers = llm.generate(chats, max_tokens=12)
    for answer, text, own in zip(answers, texts, seeds, strict=True):
        prompt = golden.prompt(text, own)
        golden.compare(answer.token_ids, prompt, 12, text)
        stopped = answer.finish_reason == "stop"
        shown = answer.token_ids[:-1] if stopped else answer.token_ids
        assert answer.text == llm.processor.decode(shown)
        assert answer.num_prompt_tokens == len(prompt.token_ids)
    assert "answers: 100%" in capsys.readouterr().err


def test_a_refused_chat_says_why_and_the_others_are_answered(tiny: BuildCheckpoint) -> None:
    llm = LLM(str(tiny("llama")), device="cpu", kv_cache_memory=1 << 23, max_model_len=64)
    long, short = [ChatMessage("user", "word " * 200)], [ChatMessage("user", "Hi")]
    refused, answered = llm.generate([long, short], progress=False, max_tokens=3)
    assert refused.finish_reason == "error"
    assert refused.error is not None
    assert "64" in refused.error
    assert len(answered.token_ids) > 0
