"""The base class of all compressors, which reduce a picture's visual tokens to fewer.

A compressor sees a picture as the draft's layer would read it, one vector per visual token, and as grids of
tokens. It knows nothing of models, pages or positions other than the order of tokens. It must never return
more tokens than it was given: memory reservation relies on this.
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
    tiled picture, ``((1, N),)`` if unknown. ``key``: the picture's hash, the seed of random choices, so that
    a picture always keeps the same tokens. ``scores`` float ``[N]``: the importance of each token, if known
    (the attention that the vision tower paid to it).
    """

    grids: tuple[Grid, ...]
    key: bytes
    scores: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def num_tokens(self) -> int:
        return sum(height * width for height, width in self.grids)


@dataclass(slots=True)
class Compressed:
    """The compressed tokens of one picture.

    ``values`` ``[M, D]``; ``sources`` int64 ``[M]``, non-decreasing: the visual token (0 to N - 1) whose
    place and position each of them takes, whatever the position scheme.
    """

    values: Tensor
    sources: Tensor


class Compressor(nn.Module):
    """Base class of compressors.

    ``ratio``: visual tokens per kept token, at least 1; approximate, as far as grids allow.
    ``needs_scores``: whether every picture must have ``scores``. Weights, if there are any, do not depend on
    the ratio.
    """

    name: str
    max_ratio: float = float("inf")
    needs_scores: bool = False

    def __init__(self, ratio: float = 1.0) -> None:
        super().__init__()
        self.ratio = self._checked(ratio)

    @property
    def tag(self) -> str:
        """Name and ratio, as in ``pool-5``. With the weights and the picture, it determines the result."""
        return f"{self.name}-{self.ratio:g}"

    def at(self, ratio: float) -> Self:
        """Return a compressor with the same weights at another ratio."""
        other = copy.copy(self)
        other.ratio = self._checked(ratio)
        return other

    def num_kept(self, picture: Picture) -> int:
        """Return the number of tokens kept, which depends only on the picture's shape; between 1 and N."""
        return sum(height * width for height, width in kept_grids(picture, self.ratio))

    @abstractmethod
    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        """Compress pictures of possibly different sizes.

        ``inputs`` ``[sum N, D]``: the pictures' tokens, one picture after the other.
        """

    def _checked(self, ratio: float) -> float:
        if not 1.0 <= ratio <= self.max_ratio:
            limit = "" if self.max_ratio == float("inf") else f" and at most {self.max_ratio:g}"
            raise ValueError(f"the ratio of {self.name} must be at least 1{limit}, not {ratio:g}")
        return ratio


class Whole(Compressor):
    """Keeps every token unchanged."""

    name = "none"

    @property
    def tag(self) -> str:
        return self.name

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        parts = inputs.split([picture.num_tokens for picture in pictures])
        return [Compressed(part, torch.arange(len(part), device=part.device)) for part in parts]


class TextOnly(Compressor):
    """Keeps no token: the draft knows the picture only through the target's features of the text."""

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
    """Return the compressed size of each grid.

    Both sides shrink by the square root of ``ratio``, as closely as integers allow, and stay at least 1. For
    example, 10 x 10 at 5 becomes 4 x 5, and 1 x 100 at 5 becomes 1 x 20.
    """
    return [_shrunk(grid, ratio) for grid in picture.grids]


def _shrunk(grid: Grid, ratio: float) -> Grid:
    height, width = grid
    rows = _nearest(height / ratio**0.5, height)
    columns = _nearest(height * width / ratio / rows, width)
    # A narrow grid cannot reduce its columns enough, since at least one is left: the rows make up for that.
    rows = _nearest(height * width / ratio / columns, height)
    return rows, columns


def _nearest(wanted: float, limit: int) -> int:
    return min(limit, max(1, int(wanted + 0.5)))


def cell_centres(grid: Grid, kept: Grid) -> list[int]:
    """Return the token at the centre of each cell when ``grid`` is cut into ``kept`` cells, ascending."""
    (height, width), (rows, columns) = grid, kept
    ys = [(2 * row + 1) * height // (2 * rows) for row in range(rows)]
    xs = [(2 * column + 1) * width // (2 * columns) for column in range(columns)]
    return [y * width + x for y in ys for x in xs]


def grid_centres(picture: Picture, ratio: float) -> list[int]:
    """Return the ``cell_centres`` of all grids of a picture, as indices of its visual tokens."""
    centres: list[int] = []
    first = 0
    for grid, kept in zip(picture.grids, kept_grids(picture, ratio), strict=True):
        centres += [first + centre for centre in cell_centres(grid, kept)]
        first += grid[0] * grid[1]
    return centres


def on_grids(
    inputs: Tensor, pictures: Sequence[Picture], function: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Apply ``function`` to all grids of all pictures; return each picture's tokens ``[M, D]``, grid by grid.

    ``function`` maps ``[G, D, h, w]`` to ``[G, D, h', w']`` and is called once for each grid shape.
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
