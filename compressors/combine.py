"""Combinations of compressors: concatenated or weighted tokens. The parts remain their owner's modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from compressors.base import Compressed, Compressor, Picture


def compress(inputs: Tensor, pictures: Sequence[Picture], ways: Sequence[Compressor]) -> list[Compressed]:
    """Compress each picture with its own compressor, one call per compressor; ``inputs`` ``[sum N, D]``."""
    parts = inputs.split([picture.num_tokens for picture in pictures])
    found: dict[int, Compressed] = {}
    for way in dict.fromkeys(ways):
        members = [number for number, one in enumerate(ways) if one is way]
        rows = torch.cat([parts[number] for number in members])
        found.update(zip(members, way(rows, [pictures[number] for number in members]), strict=True))
    return [found[number] for number in range(len(pictures))]


class Concat(Compressor):
    """The tokens of all ``parts``, ordered by place; the whole picture if that is not more tokens."""

    name = "concat"

    def __init__(self, parts: Sequence[Compressor]) -> None:
        super().__init__()
        self._parts = tuple(parts)  # a tuple, since their weights are saved by their owner

    @property
    def tag(self) -> str:
        return f"{self.name}({','.join(part.tag for part in self._parts)})"

    def at(self, ratio: float) -> Self:
        raise ValueError(f"{self.tag} has several ratios, not one that could be {ratio:g}")

    def num_kept(self, picture: Picture) -> int:
        return min(picture.num_tokens, sum(part.num_kept(picture) for part in self._parts))

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        found = [part(inputs, pictures) for part in self._parts]
        rows = inputs.split([picture.num_tokens for picture in pictures])
        return [self._joined(whole, list(own)) for whole, *own in zip(rows, *found, strict=True)]

    def _joined(self, whole: Tensor, own: Sequence[Compressed]) -> Compressed:
        sources = torch.cat([one.sources for one in own])
        if len(sources) >= len(whole):
            return Compressed(whole, torch.arange(len(whole), device=whole.device))
        order = sources.argsort(stable=True)
        return Compressed(torch.cat([one.values for one in own])[order], sources[order])


class Weighted(Compressor):
    """The weighted sum of ``parts``, which keep the same number of tokens. ``weights`` ``[B]`` sum to 1.

    The tokens take the places of those of the last part.
    """

    name = "weight"

    def __init__(self, parts: Sequence[Compressor], weights: Tensor) -> None:
        super().__init__(parts[0].ratio)
        self._parts, self._weights = tuple(parts), weights

    @property
    def tag(self) -> str:
        shares = ",".join(
            f"{part.name}:{float(weight):.4g}"
            for part, weight in zip(self._parts, self._weights, strict=True)
        )
        return f"{self.name}-{self.ratio:g}({shares})"

    def at(self, ratio: float) -> Self:
        return type(self)([part.at(ratio) for part in self._parts], self._weights)

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        found = [part(inputs, pictures) for part in self._parts]
        weights = self._weights.to(inputs)  # ``Elastic.decide`` leaves them on the host
        return [
            Compressed((torch.stack([one.values for one in own], -1) * weights).sum(-1), own[-1].sources)
            for own in zip(*found, strict=True)
        ]
