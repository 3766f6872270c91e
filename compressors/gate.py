"""The gate, which chooses a branch for each picture from the target's features of picture and question.

It takes the top-1 of a small two-layer network. During training its choice is drawn with Gumbel noise and its
gradient is that of the softmax (arXiv 1611.01144, straight-through); a balance term keeps every branch in
use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUESTION_TOKENS = 64
"""The most text tokens between picture and answer that count as the question."""


class Gate(nn.Module):
    """Computes logits ``[P, num_branches]`` of P pictures. ``feature_size``: width of target features."""

    def __init__(self, feature_size: int, num_branches: int, width: int = 64) -> None:
        super().__init__()
        self.picture_norm = nn.RMSNorm(feature_size, eps=1e-5)
        self.question_norm = nn.RMSNorm(feature_size, eps=1e-5)
        self.hidden = nn.Linear(2 * feature_size, width)
        self.out = nn.Linear(width, num_branches)

    def reset(self, generator: torch.Generator) -> None:
        """Initialise the weights so that every branch is equally likely."""
        for norm in (self.picture_norm, self.question_norm):
            nn.init.ones_(norm.weight)
        nn.init.normal_(self.hidden.weight, std=self.hidden.in_features**-0.5, generator=generator)
        for parameter in (self.hidden.bias, *self.out.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, pictures: Tensor, questions: Tensor) -> Tensor:
        """Compute the logits from mean target features, both ``[P, feature_size]``.

        ``pictures``: means over a picture's visual tokens; ``questions``: means over the last
        ``QUESTION_TOKENS`` text tokens between it and the answer (zeros if there are none).
        """
        both = torch.cat([self.picture_norm(pictures), self.question_norm(questions)], dim=-1)
        logits: Tensor = self.out(F.silu(self.hidden(both)))
        return logits


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return Gumbel noise: the argmax of logits plus this noise is a draw from their softmax."""
    uniform = torch.rand(shape, generator=generator).clamp_min(1e-9)
    return -(-uniform.log()).clamp_min(1e-9).log()


def straight_through(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return the one-hot argmax ``[P, B]`` with noise; its gradient is the softmax's at ``temperature``."""
    soft = ((logits + noise) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + soft - soft.detach()


def imbalance(logits: Tensor) -> Tensor:
    """Return 0 if all B branches are equally likely over P pictures, B - 1 if all take the same branch."""
    shares = logits.softmax(-1).mean(0)
    return len(shares) * shares.square().sum() - 1.0
