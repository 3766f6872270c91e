"""A few learned queries that read the whole picture: a Q-Former reduced to one cross-attention layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from compressors.base import Compressed, Compressor, Picture

_OCTAVES = 4


class Resampler(Compressor):
    """``mean(x) + out(attention(queries, key(norm(x)) + place, value(norm(x))))``.

    The first M of ``num_queries`` queries are used for M tokens, so that one set serves every ratio (nested
    queries, as in arXiv 2405.19315); there are never more than ``num_queries`` tokens. ``out`` is initialised
    to zero, so that an untrained resampler repeats the picture's mean. Its tokens take evenly spaced places
    among those of the picture.
    """

    name = "resampler"

    def __init__(self, ratio: float, size: int, num_queries: int = 16, num_heads: int = 4) -> None:
        super().__init__(ratio)
        width = num_heads * max(1, min(size, 256) // num_heads)
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(size, eps=1e-5)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.place = nn.Linear(6 * _OCTAVES, width, bias=False)
        self.key = nn.Linear(size, width, bias=False)
        self.value = nn.Linear(size, width, bias=False)
        self.out = nn.Linear(width, size)

    def reset(self, generator: torch.Generator) -> None:
        nn.init.ones_(self.norm.weight)
        nn.init.normal_(self.queries, std=1.0, generator=generator)
        for layer in (self.place, self.key, self.value):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def num_kept(self, picture: Picture) -> int:
        return min(len(self.queries), max(1, int(picture.num_tokens / self.ratio + 0.5)))

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        counts = [picture.num_tokens for picture in pictures]
        normed = self.norm(inputs)
        places = torch.cat([places_of(picture) for picture in pictures]).to(inputs)
        keys, values = (
            self._heads(pad_sequence(rows.split(counts), batch_first=True))
            for rows in (self.key(normed) + self.place(places), self.value(normed))
        )
        lengths = torch.tensor(counts, device=inputs.device)
        real = torch.arange(keys.shape[2], device=inputs.device) < lengths[:, None]
        most = max(self.num_kept(picture) for picture in pictures)
        queries = self._heads(self.queries[:most].to(keys.dtype).expand(len(counts), -1, -1))
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=real[:, None, None])
        mixed = self.out(read.transpose(1, 2).flatten(2))
        found = []
        for picture, part, more in zip(pictures, inputs.split(counts), mixed, strict=True):
            count = self.num_kept(picture)
            found.append(
                Compressed(
                    part.mean(0) + more[:count], even_places(picture.num_tokens, count).to(inputs.device)
                )
            )
        return found

    def _heads(self, rows: Tensor) -> Tensor:
        """Reshape ``[P, N, width]`` to ``[P, heads, N, width / heads]``."""
        return rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


def even_places(num_tokens: int, count: int) -> Tensor:
    """Return the centres of ``count`` equal parts of ``num_tokens``: int64 ``[count]``, ascending."""
    return (2 * torch.arange(count) + 1) * num_tokens // (2 * count)


def places_of(picture: Picture) -> Tensor:
    """Return the place encoding of each token, float32 ``[N, 24]``.

    It holds sines and cosines (four frequencies) of the token's row, column and grid, each relative to their
    number, so that it does not depend on sizes.
    """
    where = []
    for number, (height, width) in enumerate(picture.grids):
        rows = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
        columns = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
        tile = torch.full((height, width), (number + 0.5) / len(picture.grids))
        where.append(torch.stack([rows, columns, tile], dim=-1).flatten(0, 1))
    angles = torch.cat(where)[:, :, None] * torch.pi * 2.0 ** torch.arange(_OCTAVES)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
