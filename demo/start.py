"""Initialises the tower with a whitened patch basis and attention heads that look at neighbouring patches.

A transformer over raw 24-pixel patches spends its first ten thousand pictures learning that neighbouring
patches belong together and that fine detail matters as much as brightness. Both are known beforehand, so they
are put into the initial weights. Knows the tower's modules; everything stays trainable.
"""

import math
from typing import Any

import torch
from torch import Tensor

from demo.labels import GRID
from demo.model import Eyes

PLACE_WIDTH = 64
_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, 0), (1, 0), (-2, 0), (2, 0)),
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
)
"""Offset (columns, rows) of the patch that each of the four heads attends to, for the first layers."""


@torch.no_grad()
def prepare(eyes: Eyes, pixels: Tensor) -> None:
    """Initialise ``eyes`` in place from a sample of pictures, float32 [N, 3, 240, 240] in -1..1."""
    tower = eyes.vision_tower
    width = tower.config.hidden_size
    basis = whitened(pixels, tower.config.patch_size, width - PLACE_WIDTH)
    weight = tower.embeddings.patch_embedding.weight
    weight.zero_()
    weight[: width - PLACE_WIDTH] = basis.view(-1, *weight.shape[1:])
    places = tower.embeddings.position_embedding.weight
    places.zero_()
    places[1:, width - PLACE_WIDTH :] = math.sqrt(2) * waves()
    for layer, offsets in zip(tower.encoder.layers, _OFFSETS, strict=False):
        _look_away(layer.self_attn, offsets, width)


def whitened(pixels: Tensor, size: int, count: int) -> Tensor:
    """Return the ``count`` strongest principal directions of patches, scaled to unit variance.

    The result is [count, 3 * size * size].
    """
    columns = (
        pixels.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    )
    busy = columns[columns.std(-1) > 0.02]
    centred = busy - busy.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(busy))
    return (vectors[:, -count:] / (values[-count:] + 1e-2).sqrt()).T.flip(0).contiguous()


def waves() -> Tensor:
    """Return sinusoidal position embeddings of the GRID x GRID patches: [GRID * GRID, PLACE_WIDTH].

    Sines and cosines over x come first, then those over y.
    """
    speeds = _speeds()
    at = torch.arange(GRID)[:, None] * speeds
    line = torch.stack([at.sin(), at.cos()], -1).flatten(1)
    across = line[None].expand(GRID, GRID, -1)
    down = line[:, None].expand(GRID, GRID, -1)
    return torch.cat([across, down], -1).flatten(0, 1)


def _speeds() -> Tensor:
    number = PLACE_WIDTH // 4
    return math.pi * (torch.arange(number) + 0.5) / number


def _turn(offset: tuple[int, int]) -> Tensor:
    """Return the matrix that shifts sinusoidal position embeddings by ``offset``."""
    turned = torch.zeros(PLACE_WIDTH, PLACE_WIDTH)
    speeds = _speeds()
    for axis, far in enumerate(offset):
        for i, speed in enumerate(speeds):
            sine = axis * PLACE_WIDTH // 2 + 2 * i
            angle = float(speed) * far
            turned[sine, sine], turned[sine, sine + 1] = math.cos(angle), math.sin(angle)
            turned[sine + 1, sine], turned[sine + 1, sine + 1] = -math.sin(angle), math.cos(angle)
    return turned


def _look_away(attention: Any, offsets: tuple[tuple[int, int], ...], width: int) -> None:
    """Initialise head i of ``attention`` to attend to the patch at ``offsets[i]``."""
    for head, offset in enumerate(offsets):
        rows = slice(head * PLACE_WIDTH, (head + 1) * PLACE_WIDTH)
        attention.q_proj.weight[rows, width - PLACE_WIDTH :] = 1.1 * _turn(offset)
        attention.k_proj.weight[rows, width - PLACE_WIDTH :] = 1.1 * torch.eye(PLACE_WIDTH)
    attention.v_proj.weight.mul_(3.0)
