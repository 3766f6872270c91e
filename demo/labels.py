"""Dense labels: what every patch of a picture is part of, for training the tower by itself.

Converts a scene's elements to small integer arrays over the patch grid. Knows the tokenizer only as a
function from text to (token id, first character, last character) triples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from demo.canvas import font
from demo.pictures import FAMILIES
from demo.scene import Element, Scene
from demo.words import BACKGROUNDS, COLORS, KINDS, SIZES

GRID = 10
CLASSES = ("none", *KINDS, "sign", "word", "number", "head", "bar", "point", "slice")
COLOR_NAMES = ("", *COLORS)
SIZE_NAMES = ("", *SIZES)
ALPHABET = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.%"
TEXT_LEN, VALUE_LEN, CAPTION_LEN, FIELDS = 8, 5, 6, 6
COUNT_KEYS = ("shapes", *KINDS, *COLORS)
IGNORE = -100

Tokens = Callable[[str], list[tuple[int, int, int]]]


@dataclass(slots=True)
class Labels:
    """The labels of a picture.

    ``patches`` int16 [GRID*GRID, FIELDS + TEXT_LEN + VALUE_LEN]: class, colour, size, count, the character
    printed at the middle of the patch and its place in the word (both 0 outside text), then the characters of
    the element's text and value. ``captions`` int32 [GRID*GRID, CAPTION_LEN]: token ids, padded with IGNORE.
    ``whole`` int16 [2 + len(COUNT_KEYS)]: family, background, counts.
    """

    patches: np.ndarray
    captions: np.ndarray
    whole: np.ndarray


def label(scene: Scene, tokens: Tokens, places: bool = False) -> Labels:
    """Return the labels of one scene; with ``places``, captions also say where an element is."""
    patches = np.zeros((GRID * GRID, FIELDS + TEXT_LEN + VALUE_LEN), np.int16)
    captions = np.full((GRID * GRID, CAPTION_LEN), IGNORE, np.int32)
    owner = np.zeros((GRID, GRID, 2), np.float32)
    for element in scene.elements:
        row = _describe(element)
        pieces = tokens(f"{element.caption} {element.where}" if places and element.where else element.caption)
        for box in element.boxes:
            for y, x, share in covered(box):
                if (element.layer + 1, share) > tuple(owner[y, x]):
                    owner[y, x] = element.layer + 1, share
                    at = printed_at(element.caption, box, x) if element.ordered else -1
                    patches[y * GRID + x] = row
                    if at >= 0:
                        patches[y * GRID + x, 4:6] = (
                            ALPHABET.index(element.caption[at]),
                            min(at + 1, TEXT_LEN),
                        )
                    captions[y * GRID + x] = _caption(pieces, at)
    counts = [
        min(9, scene.counts.get(key, 0)) if scene.family == "shapes" or key == "shapes" else IGNORE
        for key in COUNT_KEYS
    ]
    whole = np.array(
        [FAMILIES.index(scene.family), tuple(BACKGROUNDS).index(scene.background), *counts], np.int16
    )
    return Labels(patches, captions, whole)


def covered(box: tuple[float, float, float, float]) -> list[tuple[int, int, float]]:
    """Return (row, column, share) of each patch that overlaps the box by 22 % of the smaller area or more."""
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) * GRID for edge in box)
    least = 0.22 * min(1.0, max((right - left) * (bottom - top), 1e-6))
    found = []
    for y in range(int(top), min(GRID, int(bottom) + 1)):
        for x in range(int(left), min(GRID, int(right) + 1)):
            share = (min(right, x + 1) - max(left, x)) * (min(bottom, y + 1) - max(top, y))
            if share >= least:
                found.append((y, x, share))
    return found


def _describe(element: Element) -> list[int]:
    return [
        CLASSES.index(element.cls),
        COLOR_NAMES.index(element.color),
        SIZE_NAMES.index(element.size),
        min(9, element.count),
        0,
        0,
        *_letters(element.text, TEXT_LEN),
        *_letters(element.value, VALUE_LEN),
    ]


def _letters(text: str, length: int) -> list[int]:
    return [ALPHABET.index(char) for char in text[:length].ljust(length)]


@lru_cache(maxsize=20_000)
def _edges(text: str) -> tuple[float, ...]:
    """Return where each character ends, as a share of the printed width."""
    face = font(100)
    lengths = [face.getlength(text[:i]) for i in range(1, len(text) + 1)]
    return tuple(length / lengths[-1] for length in lengths)


def printed_at(text: str, box: tuple[float, float, float, float], x: int) -> int:
    """Return the index of the character at the middle of patch column ``x``, with ``text`` across ``box``."""
    share = ((x + 0.5) / GRID - box[0]) / max(box[2] - box[0], 1e-6)
    return next((i for i, edge in enumerate(_edges(text)) if share < edge), len(text) - 1)


def _caption(pieces: list[tuple[int, int, int]], at: int) -> list[int]:
    if at >= 0:
        ids = [token for token, start, end in pieces if start <= at < end][:1]
    else:
        ids = [token for token, _, _ in pieces][:CAPTION_LEN]
    return ids + [IGNORE] * (CAPTION_LEN - len(ids))
