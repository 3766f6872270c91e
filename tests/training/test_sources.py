"""Formats of training data, and what is said of lines that cannot be read."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from processing.chat import TextPart
from tests.models import picture
from tests.training.conftest import picture_record, text_record, write_jsonl
from training.errors import DataError, TrainingError
from training.records import Dialogue, Document, to_record
from training.sources import read_items


def png(seed: int) -> bytes:
    content = io.BytesIO()
    picture(seed).save(content, "PNG")
    return content.getvalue()


def read(path: Path) -> list[Any]:
    return list(read_items([path], None, 100))


def shape(dialogue: Dialogue) -> list[tuple[str, list[object]]]:
    """Roles, texts, and the bytes of pictures."""
    return [
        (m.role, [p.text if isinstance(p, TextPart) else p.image.tobytes() for p in m.parts])
        for m in dialogue.chat()
    ]


LLAVA = {
    "id": "7",
    "image": ["1.png", "2.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A star."},
        {"from": "human", "value": "And here?\n<image>"},
        {"from": "gpt", "value": "Write <image> for a picture."},
    ],
}


def test_llavas_format(tmp_path: Path) -> None:
    for seed in (1, 2):
        picture(seed).save(tmp_path / f"{seed}.png")
    first, second = (picture(seed).tobytes() for seed in (1, 2))
    (dialogue,) = read(write_jsonl(tmp_path / "a.jsonl", [LLAVA]))
    assert shape(dialogue) == [
        ("user", [first, "What is it?"]),
        ("assistant", ["A star."]),
        ("user", ["And here?", second]),
        ("assistant", ["Write <image> for a picture."]),
    ]
    (tmp_path / "a.json").write_text(json.dumps([LLAVA]))
    assert shape(read(tmp_path / "a.json")[0]) == shape(dialogue)


def test_openais_format_with_files_and_data_urls(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "1.png")
    urls = [
        "1.png",
        str(tmp_path / "1.png"),
        (tmp_path / "1.png").as_uri(),
        f"data:image/png;base64,{base64.b64encode(png(1)).decode()}",
    ]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    record = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]}
    (dialogue,) = read(write_jsonl(tmp_path / "a.jsonl", [record]))
    assert shape(dialogue) == [("user", [picture(1).tobytes()] * 4 + ["?"])]


def test_a_dialogue_is_written_as_it_is_read(tmp_path: Path) -> None:
    (dialogue,) = read(write_jsonl(tmp_path / "a.jsonl", [picture_record(1, tmp_path)]))
    (again,) = read(write_jsonl(tmp_path / "b.jsonl", [to_record(dialogue, tmp_path)]))
    assert shape(again) == shape(dialogue)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    picture(1).save(tmp_path / "1.png")
    llava = {"conversations": LLAVA["conversations"][:2], "image": {"bytes": png(1), "path": None}}
    openai = text_record(1)
    for name, record in (("a", llava), ("b", openai)):
        write_table(pyarrow.Table.from_pylist([record, record]), tmp_path / f"{name}.parquet")
    from_llava, _ = read(tmp_path / "a.parquet")
    assert shape(from_llava) == [("user", [picture(1).tobytes(), "What is it?"]), ("assistant", ["A star."])]
    from_openai, _ = read(tmp_path / "b.parquet")
    assert shape(from_openai) == [(m["role"], [m["content"]]) for m in openai["messages"]]


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(TrainingError, match=r"pip install -e '\.\[train\]'"):
        read(tmp_path / "a.parquet")


def test_a_folder_of_texts_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n} " + "word " * 20 for n in range(6)]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_text("\n\n".join(paragraphs))
    (tmp_path / "b.txt").write_text("short")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    items = read(tmp_path)
    assert all(isinstance(item, Document) for item in items)
    assert [item.where for item in items if item.text == "short"] == ["b.txt: piece 1"]
    long = [item.text for item in items if item.text != "short"]
    assert len(long) == 6 // (200 // len(paragraphs[0]))
    assert "\n\n".join(long) == "\n\n".join(paragraphs)


GOOD = text_record(0)
USER = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be an object"),
        ("{}", "'messages' .* or 'conversations'"),
        ('{"messages": []}', "'messages' must be a non-empty list"),
        ({"messages": [{"role": "robot", "content": "?"}]}, "the 'role' of a message must be one of"),
        ({"messages": [{"role": "assistant", "content": "?"}]}, "no message with the role 'user'"),
        ({"messages": [USER | {"contnet": 1}]}, "unknown fields in a message: contnet"),
        ({"messages": [USER | {"content": 7}]}, "'content' must be"),
        ({"messages": [USER | {"content": [{"type": "audio"}]}]}, "a part must have the type"),
        ({"messages": [USER], "tools": [{}]}, "'tools' are not supported"),
        ({"image": "no.png", "conversations": [{"from": "human", "value": "<image>"}]}, "no image"),
        ({"conversations": [{"from": "human", "value": "<image>"}]}, "more <image> placeholders"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "'from' must be one of"),
        ({"image": 3, "conversations": [{"from": "human", "value": "x"}]}, "'image' must be"),
    ],
)
def test_a_bad_line_is_named(line: str | dict[str, Any], said: str, tmp_path: Path) -> None:
    bad = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{bad}\n{json.dumps(GOOD)}\n")
    with pytest.raises(DataError, match=rf"^a\.jsonl:3: .*{said}"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org/a.png", "not downloaded"),
        ("data:image/png,x", "must look like"),
        ("data:image/png;base64,%%%", "valid base64"),
        ("missing.png", "there is no image"),
    ],
)
def test_a_bad_picture_is_named(url: str, said: str, tmp_path: Path) -> None:
    record = {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": url}}]}]}
    with pytest.raises(DataError, match=rf"^a\.jsonl:1: .*{said}"):
        read(write_jsonl(tmp_path / "a.jsonl", [record]))


def test_a_damaged_picture_is_named_when_it_is_opened(tmp_path: Path) -> None:
    record = picture_record(1, tmp_path)
    (tmp_path / "1.png").write_bytes(png(1)[:60])
    (dialogue,) = read(write_jsonl(tmp_path / "a.jsonl", [record]))
    with pytest.raises(DataError, match=r"^a\.jsonl:1: the image 1\.png cannot be read"):
        dialogue.chat()
