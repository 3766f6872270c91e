"""The draft's prompts: varied, reproducible, and held-out ones apart from what is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from demo.draft_data import prompts, write
from demo.wordings import templates


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def questions(record: dict[str, Any]) -> list[str]:
    contents = [message["content"] for message in record["messages"]]
    return [content if isinstance(content, str) else content[-1]["text"] for content in contents]


def pictures(record: dict[str, Any]) -> list[str]:
    first = record["messages"][0]["content"]
    return [] if isinstance(first, str) else [part["image_url"]["url"] for part in first[:-1]]


def test_prompts_of_all_kinds_with_their_pictures(tmp_path: Path) -> None:
    records = read(write(tmp_path, "train", 60, 60))
    seen = [record for record in records if pictures(record)]
    assert len(seen) == len(records) / 2 == 60
    assert {message["role"] for record in records for message in record["messages"]} == {"user"}
    named = [name for record in seen for name in pictures(record)]
    assert len(named) == len(set(named)) == 60 + 60 // 20
    assert all(Image.open(tmp_path / name).size[0] > 100 for name in named)
    assert {len(pictures(record)) for record in seen} == {1, 2}
    assert {1, 2, 3} <= {len(record["messages"]) for record in records}
    assert len({questions(record)[0] for record in records}) > 90
    wordings = {*prompts("train")["describe"], *templates("describe")[0]}
    assert sum(questions(record)[0] in wordings for record in seen) >= 15


def test_pictures_that_do_not_matter_and_albums(tmp_path: Path) -> None:
    records = read(write(tmp_path, "heldout", 0, 0, 8, 6))
    shown = [len(pictures(record)) for record in records]
    assert sorted(shown) == [1] * 8 + [6] * 6
    assert all((tmp_path / name).exists() for record in records for name in pictures(record))
    asked = {count: [questions(r)[0] for r in records if len(pictures(r)) == count] for count in (1, 6)}
    assert all(text.startswith("Look at picture ") for text in asked[6])
    assert len({text.split()[3] for text in asked[6]}) > 1
    assert len(set(asked[1])) > 5


def test_the_same_prompts_every_time(tmp_path: Path) -> None:
    once, again = (write(tmp_path / name, "train", 10, 10) for name in ("a", "b"))
    assert once.read_bytes() == again.read_bytes()
    for name in (name for record in read(once) for name in pictures(record)):
        assert (once.parent / name).read_bytes() == (again.parent / name).read_bytes()


def test_held_out_prompts_are_others(tmp_path: Path) -> None:
    train, heldout = (read(write(tmp_path, split, 40, 80)) for split in ("train", "heldout"))
    assert not {questions(r)[0] for r in train if not pictures(r)} & {
        questions(r)[0] for r in heldout if not pictures(r)
    }
    shown = [
        {(tmp_path / name).read_bytes() for record in split for name in pictures(record)}
        for split in (train, heldout)
    ]
    assert not shown[0] & shown[1]
