"""Replaces parts of a model by Triton modules where they are verified to compute the same.

The counterpart of :mod:`engine.kernels.install` for CUDA. Results are compared in float32, where another
activation, or a norm that adds 1 to its weight, cannot be mistaken for rounding.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.kernels.likeness import (
    eps_of,
    given_attention,
    is_attention,
    is_gated_mlp,
    is_rms_norm,
    listed,
    replace_below,
    same,
    same_norm,
    sample,
)
from engine.kernels.triton_attention import TritonAttention
from engine.kernels.triton_layers import TritonMLP, TritonNorm, TritonSelfAttention

log = logging.getLogger(__name__)


def install(model: nn.Module, attention: TritonAttention) -> str:
    """Replace all supported modules in ``model``; return a list of what was replaced.

    Works on one part at a time, so that a plain weight is freed before the next fused one is created.
    """
    return listed(replace_below(model, partial(_like, attention=attention)))


@torch.inference_mode()
def _like(child: nn.Module, attention: TritonAttention) -> nn.Module | None:
    if is_rms_norm(child):
        return _norm_like(child)
    if is_gated_mlp(child):
        return _mlp_like(child)
    if is_attention(child):
        return _attention_like(child, attention)
    return None


def _norm_like(layer: Any) -> TritonNorm | None:
    if eps_of(layer) is None:
        return None
    plain, weight = deepcopy(layer).float(), layer.weight
    return TritonNorm(layer) if same_norm(TritonNorm(plain), plain, len(weight), weight.device) else None


def _mlp_like(layer: Any) -> TritonMLP | None:
    plain, weight = deepcopy(layer).float(), layer.gate_proj.weight
    x = sample(weight.shape[1], weight.device)
    return TritonMLP(layer) if same(TritonMLP(plain)(x), plain(x)) else None


def _attention_like(layer: Any, attention: TritonAttention) -> TritonSelfAttention | None:
    """Return an equivalent attention layer, with the window that the original passes to its attention."""
    plain = deepcopy(layer).float()
    asked = given_attention(plain, attention)
    try:
        wanted, _ = plain(**asked)
        (window,) = asked["context"].planned.windows
        found, _ = TritonSelfAttention(plain, window)(**asked)
    except Exception as error:  # needs positions of another shape, or further arguments
        log.debug("%s is not replaced: %s", type(layer).__name__, error)
        return None
    return TritonSelfAttention(layer, window) if same(found, wanted) else None
