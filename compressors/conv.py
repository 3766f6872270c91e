"""A learned convolution before pooling, which can mix neighbours and channels before cells are averaged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors.base import Compressed, Compressor, Picture, on_grids
from compressors.pool import Pool, pooled


class Conv(Compressor):
    """``pool(x) + pointwise(pool(silu(depthwise3x3(norm(x)))))`` on every grid.

    The pointwise part is initialised to zero, so that training starts from average pooling. Beyond a ratio of
    5 a 3 x 3 kernel covers only a small part of a cell, hence the limit.
    """

    name = "conv"
    max_ratio = 5.0

    def __init__(self, ratio: float, size: int) -> None:
        super().__init__(ratio)
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.depthwise = nn.Conv2d(size, size, 3, padding=1, groups=size)
        self.pointwise = nn.Linear(size, size)

    def reset(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.depthwise.weight, std=1 / 3, generator=generator)  # nine inputs: keeps variance
        for parameter in (self.depthwise.bias, *self.pointwise.parameters()):
            assert parameter is not None
            nn.init.zeros_(parameter)

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        plain = Pool(self.ratio)(inputs, pictures)
        mixed = on_grids(self.norm(inputs), pictures, self._mixed)
        return [
            Compressed(one.values + self.pointwise(more), one.sources)
            for one, more in zip(plain, mixed, strict=True)
        ]

    def _mixed(self, grids: Tensor) -> Tensor:
        return pooled(F.silu(self.depthwise(grids)), self.ratio)
