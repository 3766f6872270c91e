"""Reads published data sets in their original layouts: the questions of the paper's tables.

Layouts are those of LLaVA's evaluation folder (``docs/Evaluation.md`` and ``scripts/v1_5/eval/`` of
haotian-liu/LLaVA) and of the data set card of MMMU. As in the paper (arXiv 2509.11815, section 4.1), only
questions with pictures are used, in their order, and instructions to answer briefly are replaced.
"""

from __future__ import annotations

import ast
import base64
import binascii
import csv
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.load.errors import BenchError
from benchmarks.load.messages import Messages, picture_part, question, text_part, to_messages
from training.records import parse_record
from training.sources import records

EXPLAIN = "Please give a detailed and reasonable explanation for the answer."
SHORT = (
    "Answer with the option's letter from the given choices directly.",
    "Answer the question using a single word or phrase.",
    "Please answer yes or no.",
)

Questions = Iterator[Messages]
Sets = list[tuple[str, Questions]]

# The paper's six subjects of MMMU.
SUBJECTS = ("Art", "Biology", "Chemistry", "Economics", "Math", "Physics")


def explained(text: str) -> str:
    """Replace an instruction to answer briefly by the paper's instruction to explain the answer."""
    text = text.strip()
    for short in SHORT:
        text = text.removesuffix(short).rstrip()
    return f"{text}\n{EXPLAIN}"


def jsonl(folder: Path, file: str, pictures: str, ask: Callable[[str], str] = explained) -> Questions:
    """Read LLaVA's format: each line has ``image``, a path below the folder ``pictures``, and ``text``."""
    for record, where in records(folder / file):
        match record:
            case {"image": str(image), "text": str(text)}:
                path = folder / pictures / image
                if not path.is_file():
                    raise BenchError(f"{where}: there is no image {str(path)!r}")
                yield question(ask(text), [path.read_bytes()])
            case {"text": str()}:
                continue  # a question without a picture
            case _:
                raise BenchError(f"{where}: a question needs 'text' and 'image'")


def scienceqa(folder: Path) -> Questions:
    """Read LLaVA's conversion of ScienceQA.

    The picture's placeholder is after the question there, but LLaVA puts the picture first when asking.
    """
    for record, where in records(folder / "llava_test_CQM-A.json"):
        if isinstance(record, dict) and record.get("image") is not None:
            parts = to_messages(parse_record(record, folder / "images" / "test", where))[0]["content"]
            text = next(part for part in parts if part["type"] == "text")
            others = [part for part in parts if part is not text]
            yield [{"role": "user", "content": [*others, text_part(explained(text["text"]))]}]


def mmbench(folder: Path, file: str = "mmbench_dev_20230712.tsv") -> Questions:
    """Read MMBench: tab-separated, with pictures in base64, a hint, and the options as LLaVA formats them."""
    path = folder / file
    if not path.is_file():
        raise BenchError(f"there is no file {str(path)!r}")
    csv.field_size_limit(sys.maxsize)  # a picture is one field
    with path.open(encoding="utf-8", newline="") as opened:
        for number, row in enumerate(csv.DictReader(opened, delimiter="\t"), 1):
            try:
                picture = base64.b64decode(row["image"], validate=True)
                text = "\n".join(
                    [row["hint"]] * _given(row.get("hint"))
                    + [row["question"]]
                    + [f"{letter}. {row[letter]}" for letter in "ABCD" if _given(row.get(letter))]
                )
            except (KeyError, TypeError, binascii.Error) as error:
                raise BenchError(
                    f"{file}: row {number} needs 'question', 'image' in base64, and 'A'"
                ) from error
            yield question(explained(text), [picture])


def _given(value: str | None) -> bool:
    return bool(value) and str(value).lower() not in ("nan", "none")


def mmmu(folder: Path, subject: str) -> Questions:
    """Read the validation split of one subject. Each picture is put where the text first mentions it."""
    files = sorted((folder / subject).glob("validation-*.parquet"))
    if not files:
        raise BenchError(f"there is no {str(folder / subject / 'validation-*.parquet')!r}")
    for record, where in (item for file in files for item in records(file)):
        try:
            options = ast.literal_eval(record["options"])
            lines = [f"({chr(ord('A') + index)}) {option}" for index, option in enumerate(options)]
            text = explained("\n".join([record["question"], *lines]))
            yield [{"role": "user", "content": _in_place(text, record)}]
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise BenchError(f"{subject}: {where} needs 'question', 'options' and 'image_1'") from error


def _in_place(text: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    waiting = {f"<image {n}>": record[f"image_{n}"]["bytes"] for n in range(1, 8) if f"image_{n}" in record}
    named = re.split(r"(<image \d>)", text)
    parts = [picture_part(waiting.pop(mark)) for mark in sorted(waiting) if mark not in named]
    for piece in named:
        if piece in waiting:
            parts.append(picture_part(waiting.pop(piece)))
        elif piece.strip():
            parts.append(text_part(piece.strip()))
    return parts


def _as_it_is(text: str) -> str:
    return text


# Data sets with their folders in LLaVA's evaluation folder.
_LLAVA: dict[str, tuple[str, Callable[[Path], Questions]]] = {
    "llava-wild": (
        "llava-bench-in-the-wild",
        partial(jsonl, file="questions.jsonl", pictures="images", ask=_as_it_is),
    ),
    "mmbench": ("mmbench", mmbench),
    "scienceqa": ("scienceqa", scienceqa),
    "seed-bench": ("seed_bench", partial(jsonl, file="llava-seed-bench.jsonl", pictures="")),
    "textvqa": ("textvqa", partial(jsonl, file="llava_textvqa_val_v051_ocr.jsonl", pictures="train_images")),
    "vqav2": ("vqav2", partial(jsonl, file="llava_vqav2_mscoco_test-dev2015.jsonl", pictures="test2015")),
}
# Data sets that are not in the paper's tables.
_MORE: dict[str, Callable[[Path], Questions]] = {
    "mm-vet": partial(jsonl, file="llava-mm-vet.jsonl", pictures="images", ask=_as_it_is),
    "mme": partial(jsonl, file="llava_mme.jsonl", pictures="MME_Benchmark_release_version"),
}


def _alone(name: str, reader: Callable[[Path], Questions], folder: Path) -> Sets:
    return [(name, reader(folder))]


def _llava_suite(root: Path) -> Sets:
    return [(name, reader(root / folder)) for name, (folder, reader) in _LLAVA.items()]


def _mmmu_suite(root: Path) -> Sets:
    return [(f"mmmu/{subject}", mmmu(root, subject)) for subject in SUBJECTS]


PUBLISHED: dict[str, Callable[[Path], Sets]] = {
    **{name: partial(_alone, name, reader) for name, (_, reader) in _LLAVA.items()},
    **{name: partial(_alone, name, reader) for name, reader in _MORE.items()},
    "llava": _llava_suite,
    "mmmu": _mmmu_suite,
}
