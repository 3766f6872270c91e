"""Batches of packed dialogues about pictures, with some text-only rows; they depend on the step alone.

Knows scenes, packing and labels, but not models.
"""

from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.utils.data import Dataset

from demo import pairs
from demo.data import dense
from demo.model import tokens_with_offsets
from demo.packing import Row, arrays, branch, chain, prefix
from demo.pictures import follow_up, generator, questions, scene
from demo.recipe import READING, TALK
from demo.scene import Question, Scene
from demo.text import passages

ROW = 352
WEIGHTS = {"position": 3.0, "shape": 2.0, "count": 1.5, "word": 3.0}
"""Exponents for the random numbers in 0..1 that order a picture's branches. Hard tasks come early, so that
few of them are cut off."""


class DialogueBatches(Dataset[dict[str, torch.Tensor]]):
    """Data set whose item ``step`` has ``batch`` rows over ``batch + 1 + extra`` pictures.

    The last row is special, taking turns: two pictures, text only, the question before the picture.
    ``text_row`` is its index if it is text only, else -1; pictures are in the order of their tokens in the
    rows, with spare ones last.
    """

    def __init__(
        self,
        seed: int,
        batch: int,
        language: Path,
        texts: Path | None,
        extra: int = 0,
        places: bool = False,
        mix: tuple[float, ...] = TALK,
    ):
        self.seed, self.batch, self.language = seed, batch, language
        self.texts, self.extra, self.places, self.mix = texts, extra, places, mix
        self.ready: Any = None

    def _open(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.language / "tokenizer.json"))

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        return encode, tokens_with_offsets(self.language), passages(self.texts)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        self.ready = self.ready or self._open()
        encode, tokens, texts = self.ready
        rng = generator(self.seed, step, "train")
        rows, scenes = [], []
        for _ in range(self.batch - 1):
            drawn = scene(rng, mix=self.mix)
            rows.append(shared_row([drawn], _dialogues(drawn, rng), encode))
            scenes.append(drawn)
        kind = step % 3
        if kind == 0:
            first, second, question = pairs.draw(rng, "train")
            more = [[question]] + [[again] for again in pairs.more(first, second, rng, "train")]
            rows.append(shared_row([first, second], more, encode))
            scenes += [first, second]
        elif kind == 1 and texts:
            rows.append(text_row(texts[rng.randrange(len(texts))], encode, rng))
        else:
            drawn = scene(rng)
            rows.append(chain_row(drawn, rng, encode))
            scenes.append(drawn)
        while len(scenes) < self.batch + 1 + self.extra:
            scenes.append(scene(rng, mix=READING))
        packed = {name: torch.from_numpy(array) for name, array in arrays(rows).items()}
        text = torch.tensor(len(rows) - 1 if kind == 1 and texts else -1)
        return packed | dense(scenes, tokens, self.places) | {"text_row": text}


def _dialogues(drawn: Scene, rng: Random) -> list[list[Question]]:
    """Return the branches of one picture in random order, often with the description first.

    Some of the time, one of them has two turns.
    """
    single = [question for _ in range(3) for question in questions(drawn, rng, "train")]
    seen: set[str] = set()
    branches = []
    for question in sorted(single, key=lambda one: rng.random() ** WEIGHTS.get(one.task, 1.0)):
        if question.text not in seen and (question.task != "describe" or "describe" not in seen):
            branches.append([question])
            seen |= {question.text, question.task}
    if rng.random() < 0.3:
        two = (
            follow_up(drawn, rng, "train")
            if drawn.family == "shapes" and rng.random() < 0.6
            else rng.sample(single, 2)
        )
        branches.insert(rng.randrange(3), two)
    if rng.random() < 0.5:
        branches.sort(key=lambda turns: turns[0].task != "describe")
    return branches


def shared_row(scenes: list[Scene], branches: list[list[Question]], encode: Any) -> Row:
    """Return a row whose branches share the pictures."""
    row = Row(ROW)
    start = prefix(len(scenes), encode)
    row.add(start, [0] * len(start), branch=False)
    for turns in branches:
        row.add(*branch([(q.text, q.answer) for q in turns], encode), branch=True)
        if row.room < 25:
            break
    return row


def chain_row(drawn: Scene, rng: Random, encode: Any) -> Row:
    """Return a row with one dialogue of up to four turns, with the first question before the picture."""
    row = Row(ROW)
    found = questions(drawn, rng, "train")
    turns = [(q.text, q.answer) for q in rng.sample(found, min(4, len(found)))]
    while not row.add(*chain(turns, encode), branch=False):
        turns = turns[:-1]
    return row


def text_row(text: str, encode: Any, rng: Random) -> Row:
    """Return a text-only row, all of whose tokens are targets (for the raw model's distribution)."""
    row = Row(ROW)
    ids = encode(text)
    start = 0 if text.startswith("<|im_start|>") else rng.randrange(max(1, len(ids) - ROW))
    ids = ids[start : start + ROW]
    row.add(ids, [1] * len(ids), branch=False)
    return row
