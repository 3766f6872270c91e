"""Builds the draft's input for a batch, slot by slot, with pictures whole or compressed.

The slots of a compressed picture are replaced by fewer ones; each takes the place and the position of one
visual token. The slots of text keep their content and order, so a row gets shorter:

    whole        t0 v0 v1 v2 v3 t1 t2        pool to 2 tokens       t0 p0 p1 t1 t2
    rounds        0  1  2  3  4  5  6                                0  -  -  0  1

``rounds``: how many slots before a slot a round of drafts that reaches it may have begun. When serving, no
round begins at a compressed slot, so rounds that would begin before one and reach across it are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressors.base import Compressor, Picture, Whole
from compressors.combine import compress
from engine.draft.eagle import EagleDraft


@dataclass(frozen=True, slots=True)
class Rows:
    """B rows of N slots.

    ``joined`` ``[B, N, D]``: input of the draft's layer in step 0. ``embeddings`` ``[B, N, hidden]``:
    meaningless for compressed slots. ``positions``: rotary positions, int64 ``[B, N]`` or ``[3, B, N]``.
    ``dialogues`` int64 ``[B, N]``: which dialogue of its row a slot belongs to, -1 for padding. ``rounds``
    int64 ``[B, N]``: negative for compressed slots. ``slots`` int64 ``[T]``: which of the B * N slots holds
    each of the batch's T tokens (padding included, row by row), -1 for none.
    """

    joined: Tensor
    embeddings: Tensor
    positions: Tensor
    dialogues: Tensor
    rounds: Tensor
    slots: Tensor


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture, and the ``slots`` of its visual tokens among a batch's tokens: int64 ``[N]``, ascending."""

    picture: Picture
    slots: Tensor


def shifted(values: Tensor, dialogues: Tensor) -> Tensor:
    """Shift ``values`` ``[B, N, hidden]`` by one slot, with zeros at the first slot of every dialogue."""
    return torch.roll(values, 1, dims=1).masked_fill(_first(dialogues).unsqueeze(-1), 0.0)


def whole_rows(
    draft: EagleDraft, embeddings: Tensor, features: Tensor, positions: Tensor, dialogues: Tensor
) -> Rows:
    """Give every token a slot of its own. ``features``: the target's, of the tokens of ``embeddings``."""
    joined = draft.join(shifted(draft.fuse(features), dialogues), embeddings)
    slots = torch.arange(dialogues.numel(), device=dialogues.device)
    barriers = _first(dialogues)
    return Rows(joined, embeddings, positions, dialogues, _since(barriers, barriers & False), slots)


def shortened(rows: Rows, placed: Sequence[Placed], ways: Sequence[Compressor]) -> Rows:
    """Compress each picture of ``rows``, which must be whole, in the corresponding one of ``ways``."""
    chosen = [
        (one, way) for one, way in zip(placed, ways, strict=True) if not isinstance(way, Whole)
    ]  # the slots of a whole picture are treated like text
    if not chosen:
        return rows
    height, width = rows.dialogues.shape
    joined, dialogues = rows.joined.flatten(0, 1), rows.dialogues.flatten()
    visual = torch.cat([one.slots for one, _ in chosen])
    found = compress(joined[visual], [one.picture for one, _ in chosen], [way for _, way in chosen])
    stays = dialogues >= 0
    stays[visual] = False
    kept = stays.nonzero().flatten()
    # Sorted by old slot; ties are tokens of one picture with the same place.
    old = torch.cat([kept, *(one.slots[done.sources] for (one, _), done in zip(chosen, found, strict=True))])
    order = old.argsort(stable=True)
    old = old[order]
    values = torch.cat([joined[kept], *(done.values.to(joined.dtype) for done in found)])[order]
    row = old // width
    counts = torch.bincount(row, minlength=height)
    new_width = int(counts.max())
    column = torch.arange(len(old), device=old.device) - (counts.cumsum(0) - counts)[row]
    new = row * new_width + column
    shape = (height, new_width)

    def spread(source: Tensor, empty: Tensor) -> Tensor:
        return empty.index_copy(0, new, source).unflatten(0, shape)

    squeezed = spread(
        order >= len(kept), torch.zeros(height * new_width, dtype=torch.bool, device=old.device)
    )
    new_dialogues = spread(dialogues[old], dialogues.new_full((height * new_width,), -1))
    positions = rows.positions.flatten(-2)[..., old]
    new_positions = positions.new_zeros((*positions.shape[:-1], height * new_width))
    slots = torch.full_like(rows.slots, -1)
    slots[old[order < len(kept)]] = new[order < len(kept)]
    embeddings = rows.embeddings.flatten(0, 1)
    return Rows(
        joined=spread(values, values.new_zeros(height * new_width, values.shape[1])),
        embeddings=spread(embeddings[old], embeddings.new_zeros(height * new_width, embeddings.shape[1])),
        positions=new_positions.index_copy(-1, new, positions).unflatten(-1, shape),
        dialogues=new_dialogues,
        rounds=_since(_first(new_dialogues), squeezed),
        slots=slots,
    )


def _first(dialogues: Tensor) -> Tensor:
    """Return whether each slot is the first of its dialogue: bool ``[B, N]``."""
    first = dialogues != torch.roll(dialogues, 1, dims=1)
    first[:, 0] = True
    return first


def _since(first: Tensor, squeezed: Tensor) -> Tensor:
    """Count slots since the dialogue's ``first`` one or after the last ``squeezed`` one: int64 ``[B, N]``."""
    columns = torch.arange(first.shape[1], device=first.device).expand(first.shape)
    barriers = torch.where(squeezed, columns + 1, torch.where(first, columns, 0))
    return columns - barriers.cummax(dim=1).values
