"""The elastic compressor: several branches and their combination, as a configuration and as a module.

SpecVLM (arXiv 2509.11815, section 3.2): *Select* takes one branch per picture, *Weight* computes a weighted
sum of branches, *Concat* concatenates their tokens. docs/compressors.md describes what the paper leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compressors.base import Compressor, TextOnly, Whole
from compressors.combine import Concat, Weighted
from compressors.conv import Conv
from compressors.gate import Gate
from compressors.pool import Pool
from compressors.prune import AttentionPrune, NormPrune, RandomPrune, UniformPrune
from compressors.resampler import Resampler

Mode = Literal["select", "weight", "concat"]
WEIGHT_STEPS = 8
"""In *Weight* mode weights are multiples of 1/8, so that a tag determines the result exactly."""
_TRAINING_FREE: dict[str, Callable[[float], Compressor]] = {
    "none": lambda ratio: Whole(),  # noqa: ARG005 (there is nothing to choose)
    "text_only": lambda ratio: TextOnly(),  # noqa: ARG005
    "pool": Pool,
    "prune": RandomPrune,
    "prune_uniform": UniformPrune,
    "prune_norm": NormPrune,
    "prune_attention": AttentionPrune,
}
TRAINING_FREE = tuple(_TRAINING_FREE)
LEARNED = ("conv", "resampler")


@dataclass(frozen=True, slots=True)
class BranchConfig:
    """A branch and its default ``ratio``, which requests may override."""

    name: str
    ratio: float = 1.0


@dataclass(frozen=True, slots=True)
class ElasticConfig:
    """``num_queries``: the number of the resampler's queries, which limits the tokens that it returns."""

    mode: Mode
    branches: tuple[BranchConfig, ...]
    num_queries: int = 16


class Elastic(nn.Module):
    """A compressor with several branches.

    ``size``: the width of the draft layer's input; ``feature_size``: that of the target's features. Raises
    ``ValueError`` for branches that do not exist, occur twice or cannot be combined. Weights are undefined
    until they are loaded or ``reset``.
    """

    def __init__(self, config: ElasticConfig, size: int, feature_size: int) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.branches = nn.ModuleDict()
        for branch in config.branches:
            self.branches[branch.name] = _make(branch, size, config.num_queries)
        self.gate = None if config.mode == "concat" else Gate(feature_size, len(config.branches))

    def branch(self, name: str) -> Compressor:
        """Return a branch by name, at its own ratio. Raises ``KeyError`` if there is no such branch."""
        found = self.branches[name]
        assert isinstance(found, Compressor)
        return found

    @property
    def ways(self) -> list[Compressor]:
        """All branches, in the order of the configuration and of the gate's logits."""
        return [self.branch(branch.name) for branch in self.config.branches]

    @torch.no_grad()
    def decide(self, pictures: Tensor, questions: Tensor) -> list[Compressor]:
        """Choose the compressor of each of P pictures from ``[P, feature_size]``, see ``Gate.forward``."""
        if self.gate is None:
            return [Concat(self.ways)] * len(pictures)
        logits = self.gate(pictures, questions).float().cpu()
        if self.config.mode == "select":
            ways = self.ways
            return [ways[number] for number in logits.argmax(-1).tolist()]
        shares = [stepped(row) for row in logits.softmax(-1)]
        made = {tuple(row.tolist()): Weighted(self.ways, row) for row in shares}
        return [made[tuple(row.tolist())] for row in shares]

    def reset(self, generator: torch.Generator) -> None:
        """Initialise the weights: learned branches compute plain means, and the gate has no preference."""
        for branch in self.ways:
            if isinstance(branch, Conv | Resampler):
                branch.reset(generator)
        if self.gate is not None:
            self.gate.reset(generator)


def training_free(name: str, ratio: float) -> Compressor:
    """Return a branch that any draft can use. Raises ``ValueError`` for other names and ratios below 1."""
    if name not in _TRAINING_FREE:
        raise ValueError(f"{name!r} is not one of the training-free compressors: {', '.join(TRAINING_FREE)}")
    return _TRAINING_FREE[name](ratio)


def stepped(weights: Tensor) -> Tensor:
    """Round ``[B]``, which sums to 1, to multiples of 1 / ``WEIGHT_STEPS`` with the same sum.

    The largest remainders are rounded up.
    """
    wanted = weights * WEIGHT_STEPS
    whole = wanted.floor()
    left = WEIGHT_STEPS - int(whole.sum())
    whole[(wanted - whole).argsort(descending=True, stable=True)[:left]] += 1
    return whole / WEIGHT_STEPS


def _make(branch: BranchConfig, size: int, num_queries: int) -> Compressor:
    if branch.name == "conv":
        return Conv(branch.ratio, size)
    if branch.name == "resampler":
        return Resampler(branch.ratio, size, num_queries)
    return training_free(branch.name, branch.ratio)


def _check(config: ElasticConfig) -> None:
    names = [branch.name for branch in config.branches]
    unknown = sorted(set(names) - {*TRAINING_FREE, *LEARNED})
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"branches must be one or more of {', '.join((*TRAINING_FREE, *LEARNED))}, each once, not {names}"
        )
    if config.num_queries < 1:
        raise ValueError(f"the number of queries must be at least 1, not {config.num_queries}")
    if config.mode == "weight":
        other = [name for name in names if name in ("none", "text_only", "resampler")]
        if other or len({branch.ratio for branch in config.branches}) > 1:
            raise ValueError(
                "branches that are added up must all be prunings, pool or conv at one ratio, not "
                + ", ".join(f"{branch.name} at {branch.ratio:g}" for branch in config.branches)
            )
