"""``min_p``, ``top_k`` and ``top_p`` as one threshold per row: less likely tokens are cut off.

Cutting by value instead of rank makes the result independent of how a sort breaks ties: tokens as likely as
the last one kept stay, on every device and whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from engine.messages import SamplingParams

_SHORTLIST = 1024  # number of likeliest tokens to search for the cut first, instead of sorting all


def truncate(probs: torch.Tensor, params: Seq[SamplingParams]) -> torch.Tensor:
    """Zero the tokens that each row's parameters cut off ``[R, vocab]``; the rest need not sum to one.

    As in vLLM, ``min_p`` and ``top_k`` come first, and ``top_p`` is a share of what they leave.
    """
    size = probs.shape[-1] if probs.device.type != "cpu" else min(_SHORTLIST, probs.shape[-1])
    wide = [p.top_k > size for p in params]
    thresholds, found = _thresholds(probs, params, size)
    # Only rows whose cut lies beyond the shortlist pay for sorting the vocabulary. (Not checked on a GPU,
    # where the shortlist is the whole vocabulary and the check would cost a synchronisation.)
    if size < probs.shape[-1]:
        rest = [i for i, row_found in enumerate(found.tolist()) if wide[i] or not row_found]
        if rest:
            index = torch.tensor(rest, device=probs.device)
            thresholds[index], _ = _thresholds(probs[index], [params[i] for i in rest], probs.shape[-1])
    return torch.where(probs >= thresholds, probs, 0.0)


def _thresholds(
    probs: torch.Tensor, params: Seq[SamplingParams], size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest probability kept ``[R, 1]``, and whether the ``size`` likeliest give it ``[R]``."""
    device = probs.device
    top_p = torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64)[:, None]
    top_k = torch.tensor([min(p.top_k, size) for p in params], device=device)[:, None]
    min_p = torch.tensor([p.min_p for p in params], device=device)[:, None]
    values = probs.topk(size, dim=-1).values
    kth = values.gather(1, (top_k - 1).clamp(min=0))
    floor = torch.maximum(min_p * values[:, :1], torch.where(top_k > 0, kth, 0.0))
    mass = torch.where(probs >= floor, probs, 0.0).sum(dim=-1, keepdim=True, dtype=torch.float64)
    before = values.double().cumsum(dim=-1) - values
    inside = (before < top_p * mass) & (values >= floor)
    nucleus = torch.where(inside, values, float("inf")).amin(dim=-1, keepdim=True)
    uncut = top_p >= 1
    return torch.where(uncut, floor, nucleus), (uncut | ~inside[:, -1:]).squeeze(-1)
