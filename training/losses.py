"""Training loss of the draft: 0.1 · CE(draft logits, target logits) + 1.0 · SmoothL1(state, feature).

From SpecVLM (arXiv 2509.11815, section 3.3), after EAGLE. The labels of the cross-entropy are the target's
probabilities, renormalised over the draft's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.teacher import Head


@dataclass(frozen=True, slots=True)
class Loss:
    """Sums over predicted tokens, as scalars. ``hits``: where draft and target have the same argmax."""

    total: Tensor
    ce: Tensor
    feature: Tensor
    hits: Tensor


def distil(
    states: Tensor,
    features: Tensor,
    head: Head,
    labels: Tensor,
    valid: Tensor,
    *,
    ce_weight: float,
    feature_weight: float,
) -> Loss:
    """Compute the loss of P predicted tokens.

    ``states`` of the draft and ``features`` of the target: ``[P, hidden]``. ``labels``: the target's
    probabilities, float32 ``[P, V]``. ``valid``: float32 ``[P]``, 0 for tokens to leave out.
    """
    logits = head(states).float()
    # Elementwise product and sum, not a dot product with ``valid``: autocast would run that in bfloat16.
    ce = (cross_entropy(logits, labels) * valid).sum()
    feature = (F.smooth_l1_loss(states.float(), features, reduction="none").mean(-1) * valid).sum()
    with torch.no_grad():
        hits = ((logits.argmax(-1) == labels.argmax(-1)) * valid).sum()
    return Loss(ce_weight * ce + feature_weight * feature, ce.detach(), feature.detach(), hits)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy ``[P]`` of float32 ``logits`` and soft ``labels``, both ``[P, V]``."""
    return -(labels * F.log_softmax(logits, dim=-1)).sum(-1)
