"""Keeps the visual tokens that differ most from each other: DivPrune (arXiv 2503.02175). Training-free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import Compressed, Compressor, Picture, kept_grids


class DiversePrune(Compressor):
    """Greedily chooses each grid's share of tokens: first the one farthest from its nearest neighbour, then
    always the one farthest from all chosen ones, by cosine distance.

    Costs the products of all pairs of a grid's tokens, and a loop over the chosen ones.
    """

    name = "prune_diverse"

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        parts = inputs.split([picture.num_tokens for picture in pictures])
        kept = [self._choose(picture, part) for picture, part in zip(pictures, parts, strict=True)]
        return [Compressed(part[sources], sources) for part, sources in zip(parts, kept, strict=True)]

    def _choose(self, picture: Picture, inputs: Tensor) -> Tensor:
        grids = inputs.split([height * width for height, width in picture.grids])
        found, first = [], 0
        for grid, (rows, columns) in zip(grids, kept_grids(picture, self.ratio), strict=True):
            found.append(first + most_diverse(grid, rows * columns))
            first += len(grid)
        return torch.cat(found)


def most_diverse(inputs: Tensor, count: int) -> Tensor:
    """Choose ``count`` of ``inputs`` ``[N, D]``: int64 ``[count]``, ascending. The first of equals wins."""
    if count >= len(inputs):
        return torch.arange(len(inputs), device=inputs.device)
    unit = F.normalize(inputs.float(), dim=-1)
    distances = 1.0 - unit @ unit.T
    nearest = distances.fill_diagonal_(torch.inf).min(dim=1).values
    chosen = torch.empty(count, dtype=torch.int64, device=inputs.device)
    for number in range(count):
        best = nearest.argmax().view(1)
        chosen[number : number + 1] = best
        row = distances.index_select(0, best)[0]
        # Chosen tokens stay at minus infinity.
        nearest = (torch.minimum(nearest, row) if number else row).index_fill(0, best, -torch.inf)
    return chosen.sort().values
