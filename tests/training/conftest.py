"""Small data for tiny targets: dialogues with and without pictures, written as users write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import picture

WORDS = [
    "red",
    "blue",
    "circle",
    "square",
    "three",
    "four",
    "left",
    "right",
    "star",
    "fox",
    "dog",
    "town",
    "answer",
    "picture",
]


def text_record(number: int, turns: int = 1) -> dict[str, Any]:
    """Return a record in OpenAI's format; each number gives another text."""
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        at = number * 7 + turn * 3
        words = [WORDS[(at * (k + 2) + k) % len(WORDS)] for k in range(4 + at % 5)]
        messages.append({"role": "user", "content": f"What about {words[0]} and {words[1]}?"})
        messages.append({"role": "assistant", "content": f"There is the {' '.join(words)}."})
    return {"messages": messages}


def picture_record(number: int, folder: Path) -> dict[str, Any]:
    """Return a record with a picture, a PNG file in ``folder``."""
    name = f"{number}.png"
    picture(number).save(folder / name)
    record = text_record(number)
    question = record["messages"][0]["content"]
    record["messages"][0]["content"] = [
        {"type": "image_url", "image_url": {"url": name}},
        {"type": "text", "text": question},
    ]
    return record


def write_jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def dialogues(tmp_path: Path) -> Callable[..., Path]:
    """``dialogues(8, pictures=True)``: a JSONL file of so many dialogues."""

    def write(count: int, *, pictures: bool = False, start: int = 0, name: str = "data.jsonl") -> Path:
        numbers = range(start, start + count)
        records = [
            picture_record(n, tmp_path) if pictures and n % 2 else text_record(n, 1 + n % 2) for n in numbers
        ]
        return write_jsonl(tmp_path / name, records)

    return write
