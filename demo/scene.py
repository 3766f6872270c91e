"""The records that drawing, asking, labelling and scoring exchange.

They hold images, but know nothing of pixels or tokens.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom as fractions of the canvas."""


@dataclass(slots=True, frozen=True)
class Check:
    """What an answer must contain to be correct.

    ``kind`` is one of ``choice`` (exactly ``values[0]`` out of ``options``), ``number`` (exactly this number,
    as digits or a word), ``text`` (the string, ignoring case and punctuation), ``yesno`` (first word), or
    ``facts`` (the share of ``values`` that is mentioned; correct if all are).
    """

    kind: str
    values: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Question:
    """A question about a scene, with the answer to learn and the check to score with."""

    task: str
    text: str
    answer: str
    check: Check


@dataclass(slots=True, frozen=True)
class Element:
    """A drawn element: where it is, and what a patch on it should encode (labels for the tower).

    ``text`` and ``value`` are the word and the number that belong to the element (for a bar: its label and
    its height). ``caption`` holds the words that the language model should read there, spread over columns if
    ``ordered``. ``where`` says in which part of the picture it is.
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
    """Return a random option, drawn with the given generator."""
    return options[rng.randrange(len(options))]
