"""Deterministic samples for training, evaluation, benchmarks and tests.

    sample(seed, index, split="heldout", task="count")  ->  images, (question, answer) turns, checks

Samples are determined by the arguments; there is no global random state. A picture takes a few milliseconds.
The ``heldout`` split uses other pictures *and* other question wordings than ``train``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image

from demo import charts, pairs, shapes, signs, tables
from demo.scene import Check, Question, Scene
from demo.wordings import wording
from demo.words import COLORS, KINDS

Split = Literal["train", "heldout"]

TASKS = (
    "color",
    "shape",
    "position",
    "count",
    "compare",
    "yesno",
    "word",
    "number",
    "bar",
    "line",
    "pie",
    "table",
    "receipt",
    "describe",
    "dialogue",
    "two_pictures",
)


@dataclass(slots=True, frozen=True)
class Sample:
    """Pictures, the dialogue about them (one turn, or two for ``dialogue``), and one check per turn."""

    task: str
    images: list[Image.Image]
    turns: list[tuple[str, str]]
    checks: list[Check]


_DRAW: dict[str, Callable[[Random], Scene]] = {
    "shapes": shapes.draw,
    "sign": signs.draw,
    "bar": lambda rng: charts.draw(rng, "bar"),
    "line": lambda rng: charts.draw(rng, "line"),
    "pie": lambda rng: charts.draw(rng, "pie"),
    "table": tables.draw_table,
    "receipt": tables.draw_receipt,
}
_ASK = {
    "shapes": shapes.ask,
    "sign": signs.ask,
    "bar": charts.ask,
    "line": charts.ask,
    "pie": charts.ask,
    "table": tables.ask,
    "receipt": tables.ask,
}
FAMILIES = tuple(_DRAW)
_TASK_FAMILIES: dict[str, tuple[str, ...]] = {
    "color": ("shapes", "shapes", "sign"),
    "shape": ("shapes",),
    "position": ("shapes",),
    "count": ("shapes",),
    "compare": ("shapes",),
    "yesno": ("shapes", "sign"),
    "word": ("sign",),
    "number": ("sign",),
    "bar": ("bar",),
    "line": ("line",),
    "pie": ("pie",),
    "table": ("table",),
    "receipt": ("receipt",),
    "describe": FAMILIES,
}


def generator(seed: int, index: int, split: Split) -> Random:
    """Return the only source of randomness for one sample."""
    return Random(f"specvlm/{split}/{seed}/{index}")


def scene(rng: Random, family: str = "", mix: tuple[float, ...] = (8, 7, 2, 1.5, 1.5, 1.5, 2)) -> Scene:
    """Draw a scene of ``family``; if empty, of one of FAMILIES with weights ``mix``."""
    family = family or rng.choices(FAMILIES, mix)[0]
    return _DRAW[family](rng)


def questions(drawn: Scene, rng: Random, split: Split) -> list[Question]:
    """Return a question of every kind that the scene allows."""
    return _ASK[drawn.family](drawn, rng, split)


def sample(seed: int, index: int, split: Split = "train", task: str | None = None) -> Sample:
    """Return sample number ``index`` of stream ``seed``. ``task`` is one of TASKS; None takes them in turn.

    Raises ValueError for an unknown task.
    """
    task = task or TASKS[index % len(TASKS)]
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}, choose one of {', '.join(TASKS)}")
    rng = generator(seed, index, split)
    if task == "two_pictures":
        first, second, question = pairs.draw(rng, split)
        return _single(task, [first.image, second.image], question)
    if task == "dialogue":
        image, turns = dialogue(rng, split)
        return Sample(task, [image], [(q.text, q.answer) for q in turns], [q.check for q in turns])
    families = _TASK_FAMILIES[task]
    while True:
        drawn = scene(rng, families[rng.randrange(len(families))])
        fitting = [q for q in questions(drawn, rng, split) if q.task == task]
        if fitting:
            return _single(task, [drawn.image], fitting[rng.randrange(len(fitting))])


def dialogue(rng: Random, split: Split, drawn: Scene | None = None) -> tuple[Image.Image, list[Question]]:
    """Return a picture and two turns about it; for shapes, the second turn may refer to "it"."""
    drawn = drawn or scene(rng)
    if drawn.family == "shapes" and rng.random() < 0.5:
        return drawn.image, follow_up(drawn, rng, split)
    return drawn.image, rng.sample(questions(drawn, rng, split), 2)


def follow_up(drawn: Scene, rng: Random, split: Split) -> list[Question]:
    """Return two turns about one shape of a ``shapes`` scene, the second with a pronoun."""
    shape = drawn.data[rng.randrange(len(drawn.data))]
    first = Question(
        "shape",
        wording("kind_at", rng, split, pos=shape.pos),
        f"There is {shapes.article(shape.size)} {shape.thing} in the {shape.pos}.",
        Check("choice", (shape.kind,), KINDS),
    )
    key = rng.choice(("follow_color", "follow_size"))
    value, options = (
        (shape.color, tuple(COLORS)) if key == "follow_color" else (shape.size, ("small", "large"))
    )
    return [
        first,
        Question(
            "shape",
            wording(key, rng, split),
            f"The {shape.kind} is {value}.",
            Check("choice", (value,), options),
        ),
    ]


def _single(task: str, images: list[Image.Image], question: Question) -> Sample:
    return Sample(task, images, [(question.text, question.answer)], [question.check])
