"""Keep some visual tokens as they are, drop the others: at random, evenly, or by score. Nothing is learnt."""

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
        """Which tokens of ``inputs`` ``[N, D]`` stay: int64 ``[M]``, rising."""

    def forward(self, inputs: Tensor, pictures: Sequence[Picture]) -> list[Compressed]:
        parts = inputs.split([picture.num_tokens for picture in pictures])
        kept = [
            self.choose(picture, part).to(inputs.device)
            for picture, part in zip(pictures, parts, strict=True)
        ]
        return [Compressed(part[sources], sources) for part, sources in zip(parts, kept, strict=True)]


class RandomPrune(_Prune):
    """Tokens drawn with the picture's key as the seed, on the CPU: the same on every device."""

    name = "prune"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (content does not matter)
        seed = int.from_bytes(hashlib.blake2b(picture.key, digest_size=7).digest())
        order = torch.randperm(picture.num_tokens, generator=torch.Generator().manual_seed(seed))
        return order[: self.num_kept(picture)].sort().values


class UniformPrune(_Prune):
    """The token in the middle of every cell of a coarser grid."""

    name = "prune_uniform"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (content does not matter)
        return torch.tensor(grid_centres(picture, self.ratio))


class NormPrune(_Prune):
    """The tokens with the longest vectors."""

    name = "prune_norm"

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:
        return _best(inputs.float().norm(dim=-1), self.num_kept(picture))


class AttentionPrune(_Prune):
    """Those with the highest ``scores``: what the vision tower attended to. ``ValueError`` without them."""

    name = "prune_attention"
    needs_scores = True

    def choose(self, picture: Picture, inputs: Tensor) -> Tensor:  # noqa: ARG002 (the scores decide)
        if picture.scores is None or len(picture.scores) != picture.num_tokens:
            raise ValueError(f"{self.name} needs a score for each of {picture.num_tokens} visual tokens")
        return _best(picture.scores, self.num_kept(picture))


def _best(scores: Tensor, count: int) -> Tensor:
    """The ``count`` highest, in order of place; of equals the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
