"""Reads the questions to ask: on drawn pictures, a folder of pictures, from dialogues or a published set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from benchmarks.load.errors import BenchError
from benchmarks.load.messages import Messages, png, question, to_messages
from benchmarks.load.published import PUBLISHED
from benchmarks.load.settings import BenchSettings
from training.records import parse_record
from training.sources import records

DEMO = "demo"
DEMO_KINDS = ("describe", "describe", "describe", "text")
"""Asked in turn, unless the user names others."""
TEXT = "text"


@dataclass(frozen=True, slots=True)
class DataSet:
    name: str
    questions: list[Messages]


def read(settings: BenchSettings) -> list[DataSet]:
    """Read at most ``num_prompts`` questions per set. Raises ``BenchError``; for files ``TrainingError``."""
    found = []
    for name in settings.data:
        kind, _, rest = name.partition(":")
        if kind in PUBLISHED and rest:
            sets = PUBLISHED[kind](Path(rest).expanduser())
        elif kind == DEMO:
            sets = [(name, demo_questions(rest.split("+") if rest else DEMO_KINDS, settings.seed))]
        else:
            sets = [(name, path_questions(Path(name).expanduser(), settings.prompt))]
        for title, questions in sets:
            found.append(DataSet(title, list(islice(questions, settings.num_prompts))))
    for data in found:
        if len(data.questions) < max(settings.concurrency):
            raise BenchError(
                f"{data.name} has {len(data.questions)} questions, too few for --concurrency "
                f"{max(settings.concurrency)}"
            )
    return found


def demo_questions(kinds: Sequence[str], seed: int) -> Iterator[Messages]:
    """Yield the demo's questions endlessly.

    ``kinds``, which are taken in turn, are tasks of the demo's pictures, or ``text`` for text-only chat.
    """
    from demo.draft_data import text_prompts
    from demo.pictures import TASKS, sample

    if unknown := set(kinds) - {*TASKS, TEXT}:
        raise BenchError(
            f"unknown demo tasks: {', '.join(sorted(unknown))}; choose from {TEXT}, {', '.join(TASKS)}"
        )
    for number, kind in enumerate(cycle(kinds)):
        index = 100_000 * seed + number
        if kind == TEXT:
            yield text_prompts(index, "heldout")["messages"][:1]
        else:
            drawn = sample(_DEMO_SEED, index, "heldout", kind)
            yield question(drawn.turns[0][0], [png(image) for image in drawn.images])


_DEMO_SEED = 920_000
"""Used nowhere else: neither training nor the demo's evaluation draws these pictures."""


def path_questions(path: Path, prompt: str) -> Iterator[Messages]:
    if path.is_dir():
        return folder_questions(path, prompt)
    return (to_messages(parse_record(record, path.parent, where)) for record, where in records(path))


def folder_questions(folder: Path, prompt: str) -> Iterator[Messages]:
    """Ask ``prompt`` about each picture, in the order of file names. Other files are skipped."""
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    if not paths:
        raise BenchError(f"there are no images in {str(folder)!r}")
    return (question(prompt, [path.read_bytes()]) for path in paths)


_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
