"""One picture's visual tokens in, fewer out: the protocol of all compressors.

A compressor sees a picture as the draft's layer would read it, one vector a visual token, and as grids of
tokens; it knows no models, no pages and no positions but the order of tokens. It must never give more tokens
than it was given: whoever reserves memory relies on it.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

Grid = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The shape of one picture's N visual tokens, in the order of the prompt.

    ``grids``: (height, width) of each grid of tokens, row by row, one grid after the other: several for a
    picture in tiles, ``((1, N),)`` where nothing is known. ``key``: the picture's hash, the seed of random
    choices, so that a picture always keeps the same tokens. ``scores`` float ``[N]``: how much each token
    matters, if somebody knows (the attention that the vision tower paid to it).
    """

    grids: tuple[Grid, ...]
    key: bytes
    scores: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        return sum(height * width for height, width in self.grids)


@dataclass(slots=True)
class Compressed:
    """``values`` ``[M, D]``; ``sources`` int64 ``[M]``, never falling: the visual token (0 to N - 1) whose
    place and position each of them takes, whatever the position scheme."""

    values: Tensor
    sources: Tensor


class Compressor(nn.Module):
    """``ratio``: visual tokens for each one that is kept, at least 1; where grids allow, nearly.
    ``needs_scores``: of every picture.

    Weights, if there are any, do not depend on the ratio.
    """

    name: str
    max_ratio: float = float("inf")
    needs_scores: bool = False

    def __init__(self, ratio: float = 1.0) -> None:
        super().__init__()
        self.ratio = self._checked(ratio)

    @property
    def tag(self) -> str:
        """Name and ratio, as in ``pool-5``: with the weights and the picture it decides what comes out."""
        return f"{self.name}-{self.ratio:g}"

    def at(self, ratio: float) -> Self:
        """The same weights at another ratio."""
        other = copy.copy(self)
        other.ratio = self._checked(ratio)
        return other

    def num_kept(self, picture: Picture) -> int:
        """How many tokens come out, from the picture's shape alone; between 1 and N."""
        return sum(height * width for height, width in kept_grids(picture, self.ratio))

    @abstractmethod
    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        """``inputs`` ``[sum N, D]``: the pictures' tokens, one picture after the other; sizes may differ."""

    def _checked(self, ratio: float) -> float:
        if not 1.0 <= ratio <= self.max_ratio:
            limit = "" if self.max_ratio == float("inf") else f" and at most {self.max_ratio:g}"
            raise ValueError(f"the ratio of {self.name} must be at least 1{limit}, not {ratio:g}")
        return ratio


class Whole(Compressor):
    """Every token, as it is."""

    name = "none"

    @property
    def tag(self) -> str:
        return self.name

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        parts = inputs.split([picture.num_tokens for picture in pictures])
        return [Compressed(part, torch.arange(len(part), device=part.device)) for part in parts]


class TextOnly(Compressor):
    """No token: the draft knows of the picture what the target's features of the text tell it."""

    name = "text_only"

    @property
    def tag(self) -> str:
        return self.name

    def num_kept(self, picture: Picture) -> int:  # noqa: ARG002 (the same for all)
        return 0

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        none = torch.empty(0, dtype=torch.int64, device=inputs.device)
        return [Compressed(inputs[:0], none) for _ in pictures]


def kept_grids(picture: Picture, ratio: float) -> list[Grid]:
    """What is left of each grid: both sides shorter by the root of ``ratio``, as nearly as whole numbers
    allow, none below 1. 10 x 10 at 5: 4 x 5; 1 x 100 at 5: 1 x 20.
    """
    return [_shrunk(grid, ratio) for grid in picture.grids]


def _shrunk(grid: Grid, ratio: float) -> Grid:
    height, width = grid
    rows = _nearest(height / ratio**0.5, height)
    columns = _nearest(height * width / ratio / rows, width)
    # A flat grid cannot give up its share of rows: its columns were cut short of the limit above.
    rows = _nearest(height * width / ratio / columns, height)
    return rows, columns


def _nearest(wanted: float, limit: int) -> int:
    return min(limit, max(1, int(wanted + 0.5)))


def cell_centres(grid: Grid, kept: Grid) -> list[int]:
    """The token in the middle of each cell when ``grid`` is cut into ``kept`` cells, row by row, rising."""
    (height, width), (rows, columns) = grid, kept
    ys = [(2 * row + 1) * height // (2 * rows) for row in range(rows)]
    xs = [(2 * column + 1) * width // (2 * columns) for column in range(columns)]
    return [y * width + x for y in ys for x in xs]


def grid_centres(picture: Picture, ratio: float) -> list[int]:
    """``cell_centres`` of all grids of a picture, as its visual tokens."""
    centres: list[int] = []
    first = 0
    for grid, kept in zip(picture.grids, kept_grids(picture, ratio), strict=True):
        centres += [first + centre for centre in cell_centres(grid, kept)]
        first += grid[0] * grid[1]
    return centres


def on_grids(
    inputs: Tensor, pictures: Sequence[Picture], function: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """``function`` maps ``[G, D, h, w]`` to ``[G, D, h', w']`` and is called once for each shape that occurs;
    returns every picture's tokens ``[M, D]`` after it, grid after grid.
    """
    grids = [grid for picture in pictures for grid in picture.grids]
    parts = inputs.split([height * width for height, width in grids])
    done: dict[int, Tensor] = {}
    for shape in dict.fromkeys(grids):
        members = [number for number, grid in enumerate(grids) if grid == shape]
        stacked = torch.stack([parts[number] for number in members]).mT.unflatten(2, shape)
        for number, result in zip(members, function(stacked), strict=True):
            done[number] = result.flatten(1).mT
    results = (done[number] for number in range(len(grids)))
    return [torch.cat([next(results) for _ in picture.grids]) for picture in pictures]
