"""Batches: the rows of a forward pass as tensors, prepared ahead of time by worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from processing.prompt import ImageInput
from training.encode import Encoder
from training.errors import DataError, TrainingError
from training.index import Index
from training.loading import load_ahead
from training.packing import Pass
from training.records import Item


@dataclass(frozen=True, slots=True)
class Batch:
    """B rows of N tokens.

    ``ids`` int64 ``[B, N]``. ``positions`` int64 ``[B, N]``: counted from 0 in each dialogue. ``dialogues``
    int64 ``[B, N]``: which dialogue of its row a token belongs to, -1 for padding. ``predicts`` bool
    ``[B, N]``: whether the token *after* this one is to be predicted. ``images``: the pictures, and
    ``image_slots`` int64 ``[M]``: where among the B * N tokens their embeddings go. ``first_row``: index of
    row 0 among the rows of its step. ``slots`` int64 ``[B, N]``: index of a token among the tokens of all
    examples, -1 for padding.
    """

    ids: Tensor
    positions: Tensor
    dialogues: Tensor
    predicts: Tensor
    images: list[ImageInput]
    image_slots: Tensor
    first_row: int
    slots: Tensor

    @property
    def numbered_dialogues(self) -> Tensor:
        """``dialogues`` numbered across all rows; the numbers of padding belong to no dialogue."""
        rows = torch.arange(len(self.ids), device=self.ids.device)[:, None]
        return rows * (int(self.dialogues.max()) + 2) + self.dialogues + 1

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``; pictures are moved when they are encoded."""
        return Batch(
            self.ids.to(device),
            self.positions.to(device),
            self.dialogues.to(device),
            self.predicts.to(device),
            self.images,
            self.image_slots.to(device),
            self.first_row,
            self.slots.to(device),
        )


class _Passes(Dataset[Batch | DataError]):
    """Makes the batch of each pass. Errors are returned: one raised in a worker would lose its type."""

    def __init__(self, items: Sequence[Item], index: Index, encoder: Encoder, passes: Sequence[Pass]) -> None:
        self._items, self._index, self._encoder, self._passes = items, index, encoder, passes

    def __len__(self) -> int:
        return len(self._passes)

    def __getitem__(self, number: int) -> Batch | DataError:
        try:
            return make_batch(self._items, self._index, self._encoder, self._passes[number])
        except DataError as error:
            return error


def load_batches(
    items: Sequence[Item], index: Index, encoder: Encoder, passes: Sequence[Pass], *, workers: int
) -> Iterator[Batch]:
    """Yield the batch of every pass, in order. Raises ``DataError``."""
    data = _Passes(items, index, encoder, passes)
    for batch in load_ahead(data, workers):
        if isinstance(batch, DataError):
            raise batch
        yield batch


def make_batch(items: Sequence[Item], index: Index, encoder: Encoder, which: Pass) -> Batch:
    """Encode the dialogues of a pass and arrange them in rows."""
    width = max(int(index.lengths[row].sum()) for row in which.rows)
    shape = (len(which.rows), width)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    dialogues, predicts = np.full(shape, -1, np.int64), np.zeros(shape, np.bool_)
    stands = np.full(shape, -1, np.int64)
    images: list[ImageInput] = []
    slots = [np.empty(0, np.int64)]
    for r, row in enumerate(which.rows):
        at = 0
        for number, example in enumerate(row):
            item = items[index.items[example]]
            prompt = encoder.prompt(item)
            length = len(prompt.token_ids)
            if length != index.lengths[example]:
                raise TrainingError(f"{item.where} changed during the run")
            here = slice(at, at + length)
            ids[r, here], positions[r, here], dialogues[r, here] = prompt.token_ids, np.arange(length), number
            stands[r, here] = index.starts[example] + np.arange(length)
            for start, end in index.spans_of(example):
                predicts[r, at + start - 1 : at + end - 1] = True
            images += prompt.images
            slots += [image.places + r * width + at for image in prompt.images]
            at += length
        positions[r, at:] = np.arange(width - at)
    return Batch(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        dialogues=torch.from_numpy(dialogues),
        predicts=torch.from_numpy(predicts),
        images=images,
        image_slots=torch.from_numpy(np.concatenate(slots)),
        first_row=which.first_row,
        slots=torch.from_numpy(stands),
    )
