"""Packs dialogues into rows of a fixed length, so that several questions share the tokens of a picture.

A row is a tree: a prefix (system prompt, picture) and branches (question, answer) that attend to the prefix
and to themselves but not to each other. The positions of every branch continue those of the prefix, so each
is exactly the dialogue that a user would have. Example with a prefix of 3 and branches of 2 and 2 tokens:

    tokens     P P P a a b b
    position   0 1 2 3 4 3 4
    b sees     P P P     b b

Knows token ids, positions and masks, nothing of pixels or models.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from demo.model import IMAGE_TOKEN_ID, IMAGE_TOKENS
from demo.text import ASSISTANT, END, SYSTEM, USER

Encode = Callable[[str], list[int]]

PICTURE = [IMAGE_TOKEN_ID] * IMAGE_TOKENS


@dataclass(slots=True)
class Row:
    """A row being built; ``target`` is 1 for tokens to be learnt."""

    length: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.length - len(self.ids)

    def add(self, tokens: list[int], target: list[int], branch: bool) -> bool:
        """Append the prefix (``branch`` False, first) or a branch; return False if it does not fit."""
        if len(tokens) > self.room:
            return False
        start = len(self.ids)
        base = self.spans[0][1] if branch else 0
        self.ids += tokens
        self.positions += range(base, base + len(tokens))
        self.target += target
        self.spans.append((start, start + len(tokens)))
        return True


def prefix(pictures: int, encode: Encode) -> list[int]:
    """Return the token ids of the system prompt, the start of the user's turn, and ``pictures`` pictures."""
    return encode(SYSTEM + USER) + (PICTURE + encode("\n")) * pictures


def branch(turns: list[tuple[str, str]], encode: Encode) -> tuple[list[int], list[int]]:
    """Return (token ids, target) of a dialogue that continues :func:`prefix`."""
    ids: list[int] = []
    target: list[int] = []
    for i, (question, answer) in enumerate(turns):
        asked = encode((("\n" + USER) if i else "") + question + END + ASSISTANT)
        told = encode(answer + END[:-1])
        ids += asked + told
        target += [0] * len(asked) + [1] * len(told)
    return ids, target


def chain(turns: list[tuple[str, str]], encode: Encode) -> tuple[list[int], list[int]]:
    """Return (token ids, target) of a whole dialogue with the first question *before* its picture."""
    (first, answer), rest = turns[0], turns[1:]
    head = encode(SYSTEM + USER + first) + PICTURE + encode("\n" + END + ASSISTANT)
    told = encode(answer + END[:-1])
    ids, target = head + told, [0] * len(head) + [1] * len(told)
    if rest:
        more, aim = branch(rest, encode)
        opening = encode("\n" + USER)
        ids, target = ids + opening + more, target + [0] * len(opening) + aim
    return ids, target


def arrays(rows: list[Row]) -> dict[str, np.ndarray]:
    """Stack rows into arrays.

    These are ``ids`` and ``positions`` int64 [B, T], ``target`` bool [B, T], and ``mask`` bool [B, 1, T, T]
    (True: may attend).
    """
    length = rows[0].length
    ids, positions = (np.zeros((len(rows), length), np.int64) for _ in range(2))
    target = np.zeros((len(rows), length), bool)
    mask = np.zeros((len(rows), 1, length, length), bool)
    for i, row in enumerate(rows):
        used = len(row.ids)
        ids[i, :used], positions[i, :used], target[i, :used] = row.ids, row.positions, row.target
        mask[i, 0] = np.eye(length, dtype=bool)
        for at, (start, end) in enumerate(row.spans):
            mask[i, 0, start:end, start:end] = np.tri(end - start, dtype=bool)
            if at:
                mask[i, 0, start:end, : row.spans[0][1]] = True
    return {"ids": ids, "positions": positions, "target": target, "mask": mask}
