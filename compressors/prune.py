"""Pruning: keeps some visual tokens, chosen at random, evenly or by score. Training-free."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from compressors.base import Compressed, Compressor, Picture, grid_centres


class _Prune(Compressor):
    @abstractmethod
    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:
        """Choose the tokens of ``inputs`` ``[N, D]`` to keep: int64 ``[M]``, ascending."""

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        parts = inputs.split([picture.num_tokens for picture in pictures])
        kept = [
            self.choose(picture, part).to(inputs.device)
            for picture, part in zip(pictures, parts, strict=True)
        ]
        return [Compressed(part[sources], sources) for part, sources in zip(parts, kept, strict=True)]


class RandomPrune(_Prune):
    """Random tokens, drawn on the CPU with the picture's key as seed: the same on every device."""

    name = "prune"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (content does not matter)
        seed = int.from_bytes(hashlib.blake2b(picture.key, digest_size=7).digest())
        order = torch.randperm(picture.num_tokens, generator=torch.Generator().manual_seed(seed))
        return order[: self.num_kept(picture)].sort().values


class UniformPrune(_Prune):
    """The token at the centre of every cell of a coarser grid."""

    name = "prune_uniform"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (content does not matter)
        return torch.tensor(grid_centres(picture, self.ratio))


class NormPrune(_Prune):
    """The tokens with the largest norms."""

    name = "prune_norm"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:
        return _best(inputs.float().norm(dim=-1), self.num_kept(picture))


class AttentionPrune(_Prune):
    """The tokens with the highest attention ``scores``. Raises ``ValueError`` for pictures without them."""

    name = "prune_attention"
    needs_scores = True

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (the scores decide)
        if picture.scores is None or len(picture.scores) != picture.num_tokens:
            raise ValueError(f"{self.name} needs a score for each of {picture.num_tokens} visual tokens")
        return _best(picture.scores, self.num_kept(picture))


def _best(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores, ascending; the first of equals wins."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
