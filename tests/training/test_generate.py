"""The target writes the answers: each turn on what was said before, and a stopped run is taken up again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import training.generate
from engine.llm import LLM
from processing.chat import ChatMessage, ImagePart, TextPart
from tests.models import picture
from tests.training.conftest import picture_record, text_record, write_jsonl
from tests.training.targets import WORDS, reciting_target
from training.errors import TrainingError
from training.generate import answers_path, generate
from training.settings import TrainSettings


def settings(model: Path, data: Path, **changes: Any) -> TrainSettings:
    base: dict[str, Any] = {"generate": "only", "generate_max_tokens": 9, "dtype": "float32", "device": "cpu"}
    return TrainSettings(model=str(model), data=[data], out=data.parent / "out", **base | changes)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reciting_target(tmp_path_factory.mktemp("reciting"))


def test_answers_take_the_place_of_those_in_the_file(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """With pictures and several turns; a turn is answered on the target's own earlier answers."""
    folder = tiny("llava")
    records = [picture_record(1, tmp_path), text_record(2, turns=2)]
    data = write_jsonl(tmp_path / "a.jsonl", records)
    assert generate(settings(folder, data), folder, [data]) == [tmp_path / "a.answers.jsonl"]
    answered = read(tmp_path / "a.answers.jsonl")
    for record, before in zip(answered, records, strict=True):
        assert [m for m in record["messages"] if m["role"] == "user"] == [
            m for m in before["messages"] if m["role"] == "user"
        ]
        assert [m["role"] for m in record["messages"]] == [m["role"] for m in before["messages"]]
    llm = LLM(str(folder), dtype="float32", device="cpu")
    question = records[0]["messages"][0]["content"][1]["text"]
    about_picture = [ChatMessage("user", [ImagePart(picture(1)), TextPart(question)])]
    said = [ChatMessage(m["role"], m["content"]) for m in answered[1]["messages"]]
    replies = llm.generate([about_picture, said[:1], said[:3]], progress=False, max_tokens=9)
    assert [reply.text for reply in replies] == [
        answered[0]["messages"][1]["content"],
        said[1].content,
        said[3].content,
    ]


def test_a_stopped_run_goes_on(reciting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"messages": [{"role": "user", "content": f"Say {word}"}]} for word in WORDS[:6]]
    data = write_jsonl(tmp_path / "a.jsonl", records)
    monkeypatch.setattr(training.generate, "CHUNK", 2)
    chosen = settings(reciting, data, generate_temperature=1.0)
    whole = generate(chosen, reciting, [data])[0].read_text()
    assert len(set(whole.splitlines())) == 6
    lines = whole.splitlines(keepends=True)
    answers_path(data).unlink()
    # Killed in the middle of the third line of the second chunk … of which two whole lines were written.
    answers_path(data).with_suffix(".partial").write_text("".join(lines[:2]) + lines[2][:20])
    generate(chosen, reciting, [data])
    assert answers_path(data).read_text() == whole
    assert not answers_path(data).with_suffix(".partial").exists()


def test_answers_of_other_settings_or_prompts_are_in_the_way(reciting: Path, tmp_path: Path) -> None:
    records = [{"messages": [{"role": "user", "content": "Say red"}]}]
    data = write_jsonl(tmp_path / "a.jsonl", records)
    generate(settings(reciting, data), reciting, [data])
    with pytest.raises(TrainingError, match=r"'max_tokens': 9.*'max_tokens': 8"):
        generate(settings(reciting, data, generate_max_tokens=8), reciting, [data])
    write_jsonl(data, [{"messages": [{"role": "user", "content": "Say blue"}]}])
    with pytest.raises(TrainingError, match="'prompts': "):
        generate(settings(reciting, data), reciting, [data])
    write_jsonl(data, records * 2)
    with pytest.raises(TrainingError, match="'prompts': "):
        generate(settings(reciting, data), reciting, [data])


def test_answers_are_to_the_pictures_that_were_there(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("llava")
    data = write_jsonl(tmp_path / "a.jsonl", [picture_record(1, tmp_path)])
    chosen = settings(folder, data)
    generate(chosen, folder, [data])
    [shown] = tmp_path.glob("**/*.png")
    os.utime(shown, (1, 1))  # a copy
    generate(chosen, folder, [data])
    content = shown.read_bytes()
    picture(9).save(shown)
    with pytest.raises(TrainingError, match="start over"):
        generate(chosen, folder, [data])
    shown.write_bytes(content)
    answers = read(answers_path(data))
    for record in answers:
        del record["generated"]["pictures"]  # made before this was looked at
    write_jsonl(answers_path(data), answers)
    generate(chosen, folder, [data])


def test_what_the_target_cannot_answer_is_marked(reciting: Path, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 600}]}
    data = write_jsonl(tmp_path / "a.jsonl", [long, text_record(1)])
    generate(settings(reciting, data), reciting, [data])
    refused, answered = read(answers_path(data))
    assert refused["error"]
    assert [m["role"] for m in refused["messages"]] == ["user"]
    assert "error" not in answered
    assert answered["messages"][1]["role"] == "assistant"
