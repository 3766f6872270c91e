"""What is asked, from tiny files in the layouts that data are published in."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from benchmarks.load.data import DataSet, read
from benchmarks.load.errors import BenchError
from benchmarks.load.messages import Messages, png
from benchmarks.load.published import EXPLAIN, SUBJECTS, explained
from benchmarks.load.settings import BenchSettings
from tests.imports import ROOT
from training.errors import TrainingError

LETTERS = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def picture(shade: int) -> bytes:
    return png(Image.new("RGB", (4, 3), (shade, 0, 0)))


def shades(messages: Messages) -> list[int]:
    """Return the shades of red of the pictures in ``messages``, in order."""
    found = []
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "image_url":
                kind, _, content = part["image_url"]["url"].partition(";base64,")
                assert kind == "data:image/png"
                found.append(Image.open(io.BytesIO(base64.b64decode(content))).getpixel((0, 0))[0])
    return found


def text(messages: Messages) -> str:
    [message] = messages
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")


def kinds(messages: Messages) -> list[str]:
    return [part["type"] for message in messages for part in message["content"]]


def load(*data: str, **more: Any) -> list[DataSet]:
    return read(BenchSettings(**{"data": data, "num_prompts": 60, "concurrency": [1]} | more))


def put_pictures(folder: Path, *names: str) -> None:
    for shade, name in enumerate(names, 1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(shade))


def put_lines(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def llava_line(image: str, asked: str) -> dict[str, Any]:
    return {"question_id": 1, "image": image, "text": asked, "category": "default"}


def put_llava_suite(root: Path) -> None:
    """The paper's sets of LLaVA's evaluation folder, as ``docs/Evaluation.md`` there lays it out."""
    wild = root / "llava-bench-in-the-wild"
    put_pictures(wild / "images", "001.jpg", "002.jpg")
    put_lines(wild / "questions.jsonl", llava_line("001.jpg", "What is it?"), llava_line("002.jpg", "Where?"))
    seed = root / "seed_bench"
    put_pictures(seed, "SEED-Bench-image/1454426_2591111986")
    put_lines(
        seed / "llava-seed-bench.jsonl",
        llava_line("SEED-Bench-image/1454426_2591111986", f"How many towels?\nA. One\nB. Two\n{LETTERS}"),
    )
    text_vqa = root / "textvqa"
    put_pictures(text_vqa / "train_images", "003a8ae2ef43b901.jpg")
    asked = f"what is the brand of this camera?\nReference OCR token: dakota, digital\n{SHORT}"
    put_lines(text_vqa / "llava_textvqa_val_v051_ocr.jsonl", llava_line("003a8ae2ef43b901.jpg", asked))
    vqa = root / "vqav2"
    put_pictures(vqa / "test2015", "COCO_test2015_000000262144.jpg")
    put_lines(
        vqa / "llava_vqav2_mscoco_test-dev2015.jsonl",
        llava_line("COCO_test2015_000000262144.jpg", f"Is the ball flying?\n{SHORT}"),
    )
    science = root / "scienceqa"
    put_pictures(science / "images/test", "5/image.png")
    value = "Which is it?\nContext: N/A\nOptions: (A) acid (B) base"
    records = [
        {"id": "4", "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A."}]},
        {
            "id": "5",
            "image": "5/image.png",
            "conversations": [
                {"from": "human", "value": f"{value}\n<image>"},
                {"from": "gpt", "value": "B."},
            ],
        },
    ]
    (science / "llava_test_CQM-A.json").write_text(json.dumps(records))
    put_mmbench(root / "mmbench", picture(9))


def put_mmbench(folder: Path, content: bytes) -> None:
    folder.mkdir()
    image = base64.b64encode(content).decode()
    rows = [
        ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"],
        ["241", "What is right?", "", "this", "that", "", "nan", "A", "x", image],
        ["242", "And now?", "Look closely.", "a", "b", "c", "d", "B", "x", image],
    ]
    (folder / "mmbench_dev_20230712.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


def test_the_papers_six_sets_come_from_llavas_evaluation_folder(tmp_path: Path) -> None:
    put_llava_suite(tmp_path)
    sets = {data.name: data.questions for data in load(f"llava:{tmp_path}")}
    assert list(sets) == ["llava-wild", "mmbench", "scienceqa", "seed-bench", "textvqa", "vqav2"]
    assert [text(asked) for asked in sets["llava-wild"]] == ["What is it?", "Where?"], "as they are"
    assert [shades(asked) for asked in sets["llava-wild"]] == [[1], [2]]
    assert text(sets["seed-bench"][0]) == f"How many towels?\nA. One\nB. Two\n{EXPLAIN}"
    assert text(sets["textvqa"][0]).endswith(f"\nReference OCR token: dakota, digital\n{EXPLAIN}")
    assert text(sets["vqav2"][0]) == f"Is the ball flying?\n{EXPLAIN}"
    assert [text(asked) for asked in sets["mmbench"]] == [
        f"What is right?\nA. this\nB. that\n{EXPLAIN}",
        f"Look closely.\nAnd now?\nA. a\nB. b\nC. c\nD. d\n{EXPLAIN}",
    ]
    [science] = sets["scienceqa"]
    assert text(science) == f"Which is it?\nContext: N/A\nOptions: (A) acid (B) base\n{EXPLAIN}"
    for questions in sets.values():
        assert all(kinds(asked) == ["image_url", "text"] for asked in questions)


def test_a_set_alone_is_found_in_its_own_folder(tmp_path: Path) -> None:
    put_llava_suite(tmp_path)
    wild = f"llava-wild:{tmp_path}/llava-bench-in-the-wild"
    one, other = load(f"vqav2:{tmp_path}/vqav2", wild, num_prompts=1)
    assert (one.name, len(one.questions)) == ("vqav2", 1)
    assert (other.name, len(other.questions)) == ("llava-wild", 1), "the first of its questions"
    put_pictures(tmp_path / "mm" / "images", "v1_0.png")
    put_lines(tmp_path / "mm" / "llava-mm-vet.jsonl", llava_line("v1_0.png", "What is x in the equation?"))
    assert text(load(f"mm-vet:{tmp_path}/mm")[0].questions[0]) == "What is x in the equation?"
    put_pictures(tmp_path / "MME" / "MME_Benchmark_release_version", "OCR/0001.jpg")
    put_lines(tmp_path / "MME" / "llava_mme.jsonl", llava_line("OCR/0001.jpg", f"Is it a logo?\n{SHORT}"))
    assert text(load(f"mme:{tmp_path}/MME")[0].questions[0]) == f"Is it a logo?\n{EXPLAIN}"


def put_mmmu(root: Path, subject: str, *rows: dict[str, Any]) -> None:
    """The columns of the data set card, several pictures among them."""
    (root / subject).mkdir(parents=True)
    images = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = ("id", "question", "options", "explanation", "answer", "question_type", "subfield")
    schema = pyarrow.schema(
        [(name, pyarrow.string()) for name in names] + [(f"image_{n}", images) for n in range(1, 8)]
    )
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    parquet.write_table(table, root / subject / "validation-00000-of-00001.parquet")


def mmmu_row(question: str, options: list[str], *contents: bytes) -> dict[str, Any]:
    images = {f"image_{n}": {"bytes": content, "path": "x.png"} for n, content in enumerate(contents, 1)}
    return {"id": "validation_Art_1", "question": question, "options": str(options), **images}


def test_mmmu_has_its_pictures_where_the_text_names_them(tmp_path: Path) -> None:
    asked = "Compare <image 1> with <image 2>. In <image 1> …"
    for subject in SUBJECTS:
        put_mmmu(
            tmp_path,
            subject,
            mmmu_row(asked, ["it's", "<image 3>"], *map(picture, (1, 2, 3))),
            mmmu_row("Name the <image 1>", [], picture(4)),
        )
    sets = load(f"mmmu:{tmp_path}")
    assert [data.name for data in sets] == [f"mmmu/{subject}" for subject in SUBJECTS]
    first, second = sets[0].questions
    assert shades(first) == [1, 2, 3]
    assert kinds(first) == [
        "text",
        "image_url",
        "text",
        "image_url",
        "text",
        "text",
        "text",
        "image_url",
        "text",
    ]
    assert text(first) == f"Compare with . In <image 1> …\n(A) it's\n(B) {EXPLAIN}"
    assert (shades(second), text(second)) == ([4], f"Name the {EXPLAIN}")


def test_instructions_to_be_short_are_replaced() -> None:
    assert explained(f" Which?\n{LETTERS}\n") == f"Which?\n{EXPLAIN}"
    assert explained("Is it? Please answer yes or no.") == f"Is it?\n{EXPLAIN}"
    assert explained("Which?") == f"Which?\n{EXPLAIN}"


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    put_pictures(tmp_path, "b.png", "a.PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    [data] = load(str(tmp_path), prompt="What?")
    assert [shades(asked) for asked in data.questions] == [[2], [1]], "by name"
    assert {text(asked) for asked in data.questions} == {"What?"}


def test_a_file_of_dialogues_in_openais_and_llavas_format(tmp_path: Path) -> None:
    put_pictures(tmp_path, "a.png")
    part = {"type": "image_url", "image_url": {"url": "a.png"}}
    turns = [
        {"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Red."},
    ]
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    put_lines(tmp_path / "x.jsonl", {"messages": turns}, {"image": "a.png", "conversations": said})
    one, other = load(str(tmp_path / "x.jsonl"))[0].questions
    assert [message["role"] for message in one] == ["user", "assistant", "user"], "up to the last question"
    assert shades(one) == shades(other) == [1]
    assert text(other) == "What?"


def test_the_demos_questions_come_by_turns_and_from_the_seed() -> None:
    [data] = load("demo", num_prompts=8)
    assert [isinstance(asked[0]["content"], str) for asked in data.questions] == [
        False,
        False,
        False,
        True,
    ] * 2
    assert all(kinds(asked) == ["image_url", "text"] for asked in data.questions[:3])
    [again], [other] = load("demo", num_prompts=8), load("demo", num_prompts=8, seed=1)
    assert again.questions == data.questions
    assert all(asked not in data.questions for asked in other.questions)
    [chosen] = load("demo:text+two_pictures", num_prompts=2)
    assert chosen.questions[0][0]["role"] == "user"
    assert kinds(chosen.questions[1]) == ["image_url", "image_url", "text"]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    def refused(complaint: str, *data: str, **more: Any) -> None:
        with pytest.raises((BenchError, TrainingError), match=complaint):
            load(*data, **more)

    refused("unknown demo tasks: shapes;", "demo:describe+shapes")
    refused("there is no file or folder", str(tmp_path / "nothing.jsonl"))
    refused("there are no images in", str(tmp_path))
    refused("there is no file", f"mmbench:{tmp_path}")
    refused("there is no file or folder", f"llava-wild:{tmp_path}")
    refused(r"there is no '.*Art/validation-\*.parquet'", f"mmmu:{tmp_path}")
    put_lines(tmp_path / "questions.jsonl", llava_line("gone.jpg", "What?"))
    refused(r"questions.jsonl:1: there is no image '.*images/gone.jpg'", f"llava-wild:{tmp_path}")
    put_lines(tmp_path / "questions.jsonl", {"question": "What?"})
    refused("questions.jsonl:1: a question needs 'text' and 'image'", f"llava-wild:{tmp_path}")
    put_mmbench(tmp_path / "mmbench", b"no picture")
    refused("is not an image", f"mmbench:{tmp_path}/mmbench")
    put_mmmu(tmp_path, "Art", {"id": "1", "question": "What?", "options": "__import__('os')"})
    refused("Art: .*needs 'question', 'options'", f"mmmu:{tmp_path}")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    refused("is not an image", str(tmp_path))


def test_asking_needs_no_torch() -> None:
    code = "import sys; from benchmarks.load import data, run; next(data.demo_questions(['text'], 0))"
    code += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
