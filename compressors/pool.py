"""Adaptive average pooling on the picture's grids. Training-free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import Compressed, Compressor, Picture, grid_centres, kept_grids, on_grids


class Pool(Compressor):
    """The mean of every cell of a coarser grid, in the place of the token at its centre."""

    name = "pool"

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        values = on_grids(inputs, pictures, lambda grids: pooled(grids, self.ratio))
        return [
            Compressed(value, torch.tensor(grid_centres(picture, self.ratio), device=inputs.device))
            for value, picture in zip(values, pictures, strict=True)
        ]


def pooled(grids: Tensor, ratio: float) -> Tensor:
    """Pool ``[G, D, h, w]`` to ``[G, D, h', w']`` with the sides given by ``kept_grids``."""
    shape = (grids.shape[2], grids.shape[3])
    (kept,) = kept_grids(Picture((shape,), b""), ratio)
    return grids if kept == shape else F.adaptive_avg_pool2d(grids, kept)
