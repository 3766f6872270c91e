"""The records that pass between drawing, asking, labelling and scoring.

Knows nothing of pixels beyond holding an image, nor of tokens.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the canvas."""


@dataclass(slots=True, frozen=True)
class Check:
    """What an answer must contain to count as right.

    ``kind`` is one of ``choice`` (exactly ``values[0]`` of ``options``), ``number`` (exactly this number,
    as digits or word), ``text`` (the string, ignoring case and punctuation), ``yesno`` (first word), or
    ``facts`` (the share of ``values`` that is mentioned; right when all are).
    """

    kind: str
    values: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Question:
    """One question about one scene, with the answer to learn and the check to score by."""

    task: str
    text: str
    answer: str
    check: Check


@dataclass(slots=True, frozen=True)
class Element:
    """One thing drawn: where it is, and all that a patch over it should know (labels for the tower).

    ``text`` and ``value`` are the word and the number this thing is about (a bar: its label and its height);
    ``caption`` are words that the language model should read there, spread over columns when ``ordered``;
    ``where`` says in which part of the picture.
    """

    cls: str
    boxes: tuple[Box, ...]
    color: str = ""
    size: str = ""
    text: str = ""
    value: str = ""
    count: int = 0
    caption: str = ""
    where: str = ""
    ordered: bool = False
    layer: int = 0


@dataclass(slots=True)
class Scene:
    """A drawn picture and what is in it. ``data`` is private to the module that drew it."""

    family: str
    image: Image.Image
    elements: list[Element]
    background: str
    counts: dict[str, int] = field(default_factory=dict)
    data: Any = None


def pick(rng: Random, options: tuple[str, ...] | list[str]) -> str:
    """One option, by the given generator."""
    return options[rng.randrange(len(options))]
