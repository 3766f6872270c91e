"""Replaces a model's layers by CPU kernels where they are verified to compute the same.

Independent of model families: a layer is replaced if it has the parts that a kernel layer supports and gives
the same result for random input. A layer that differs in any way is kept, and its parts are tried one by one.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.attention import KernelAttention
from engine.kernels.cpu import Heads, Kernels
from engine.kernels.layer import KernelLayer
from engine.kernels.likeness import (
    given,
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
from engine.kernels.modules import KernelLinear, KernelMLP, KernelNorm
from engine.kernels.rows import CpuAttention

_CPU = torch.device("cpu")


def install(model: nn.Module, kernels: Kernels) -> str:
    """Replace all supported modules in ``model``, which become float32; return a list of what was replaced.

    Works on one layer at a time, so that a plain weight is freed before the next packed one is created.
    """
    done: Counter[str] = Counter()
    # Larger modules before their parts, except decoder layers, which consist of parts already replaced.
    for like in (attention_like, mlp_like, norm_like, linear_like, layer_like):
        done += replace_below(model, partial(like, kernels=kernels))
    return listed(done)


def linear_like(layer: nn.Module, kernels: Kernels) -> KernelLinear | None:
    return KernelLinear(layer.weight, layer.bias, kernels) if type(layer) is nn.Linear else None


@torch.inference_mode()
def norm_like(layer: Any, kernels: Kernels) -> KernelNorm | None:
    if not is_rms_norm(layer):
        return None
    made = KernelNorm(layer.float(), kernels)
    return made if same_norm(made, layer, len(layer.weight), _CPU) else None


@torch.inference_mode()
def mlp_like(layer: Any, kernels: Kernels) -> KernelMLP | None:
    if not is_gated_mlp(layer):
        return None
    made, x = KernelMLP(layer.float(), kernels), sample(layer.gate_proj.in_features, _CPU)
    return made if same(made(x), layer(x)) else None


@torch.inference_mode()
def attention_like(layer: Any, kernels: Kernels) -> KernelAttention | None:
    """Return an equivalent attention layer, with the window that the original passes to its attention."""
    if not is_attention(layer):
        return None
    asked = given_attention(layer.float(), CpuAttention(kernels))
    try:
        wanted, _ = layer(**asked)
    except Exception:  # needs positions of another shape, or further arguments
        return None
    (window,) = asked["context"].planned.windows
    made = KernelAttention(layer, window, kernels)
    return made if same(made(**asked)[0], wanted) else None


@torch.inference_mode()
def layer_like(layer: Any, kernels: Kernels) -> KernelLayer | None:
    if not KernelLayer.fits(layer):
        return None
    heads: Heads = layer.self_attn.heads
    sizes = layer.self_attn.layer_idx, heads.kv, heads.dim, layer.self_attn.qkv.in_features
    asked = given(*sizes, CpuAttention(kernels), _CPU)
    wanted = layer(**asked)
    made = KernelLayer(layer, kernels)
    return made if isinstance(wanted, Tensor) and same(made(**asked), wanted) else None
