"""The offline API answers like transformers and keeps the order of its chats."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.llm import LLM
from engine.messages import StepReport
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.errors import PromptError
from processing.prompt import Prompt
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


def test_prompts_are_built_while_earlier_ones_run(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(str(tiny("llama")), device="cpu", kv_cache_memory=1 << 23, max_num_seqs=1)
    apply, step, events = llm.processor.apply, llm.core.step, list[str]()

    def recorded_apply(chat: Sequence[ChatMessage]) -> Prompt:
        events.append("build")
        if chat[0].role == "nobody":
            raise PromptError("no such role")
        return apply(chat)

    def recorded_step() -> StepReport:
        events.append("step")
        return step()

    monkeypatch.setattr(llm.processor, "apply", recorded_apply)
    monkeypatch.setattr(llm.core, "step", recorded_step)
    roles = ["user", "user", "user", "nobody", "user"]
    answers = llm.generate([[ChatMessage(role, "Hi")] for role in roles], progress=False, max_tokens=2)
    assert events[:3] == ["build", "build", "step"]
    assert events.count("build") == 5
    assert [answer.error for answer in answers] == [None, None, None, "no such role", None]
    assert len({tuple(answer.token_ids) for answer in answers if answer.error is None}) == 1
