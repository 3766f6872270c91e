"""Puts the kernels in the place of a model's layers, where they are shown to compute the same.

Nothing here knows families: a layer is replaced if it has the parts of one that we have, and gives the same
numbers for random input. What differs in anything stays as it is, and its parts are looked at one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.kernels.attention import KernelAttention
from engine.kernels.cpu import Heads, Kernels
from engine.kernels.layer import KernelLayer
from engine.kernels.modules import KernelLinear, KernelMLP, KernelNorm
from engine.kernels.rows import CpuAttention
from engine.kv_cache import KVCache, KVShape

_ROWS = 3
_CLOSE = 1e-4
"""Of the largest number: only rounding may differ. Another activation, or a norm that adds one, is far."""


def install(model: nn.Module, kernels: Kernels) -> str:
    """Replace what can be below ``model``, which makes it float32; says what was replaced.

    One layer at a time, so that a plain weight is freed before the next packed one is made.
    """
    done: Counter[str] = Counter()
    # The whole before its parts, but a layer is made of parts that are ours.
    for like in (attention_like, mlp_like, norm_like, linear_like, layer_like):
        done += replace_below(model, partial(like, kernels=kernels))
    return listed(done)


def replace_below(module: nn.Module, like: Callable[[nn.Module], nn.Module | None]) -> Counter[str]:
    """Put what ``like`` makes of modules in their place, and look no further below those; how many of each
    type. Nothing holds on to a module that was replaced.
    """
    done: Counter[str] = Counter()
    for name in [name for name, _ in module.named_children()]:
        child = getattr(module, name)
        made = like(child)
        if made is None:
            done += replace_below(child, like)
        else:
            done[type(child).__name__] += 1
            setattr(module, name, made)
    return done


def listed(done: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(done.items()))


def linear_like(layer: nn.Module, kernels: Kernels) -> KernelLinear | None:
    return KernelLinear(layer.weight, layer.bias, kernels) if type(layer) is nn.Linear else None


@torch.inference_mode()
def norm_like(layer: nn.Module, kernels: Kernels) -> KernelNorm | None:
    weight = getattr(layer, "weight", None)
    if not type(layer).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor):
        return None
    made, sample = KernelNorm(layer.float(), kernels), _sample(len(weight))
    # Small numbers show what is added to their squares, and where.
    return made if all(same(made(x), layer(x)) for x in (sample, 1e-3 * sample)) else None


@torch.inference_mode()
def mlp_like(layer: Any, kernels: Kernels) -> KernelMLP | None:
    parts = [getattr(layer, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear and part.bias is None for part in parts):
        return None
    made, sample = KernelMLP(layer.float(), kernels), _sample(layer.gate_proj.in_features)
    return made if same(made(sample), layer(sample)) else None


@torch.inference_mode()
def attention_like(layer: Any, kernels: Kernels) -> KernelAttention | None:
    """The window is the one that the layer asks for, wherever it has that from."""
    parts: list[Any] = [getattr(layer, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    if not all(type(part) is nn.Linear for part in parts):
        return None
    if not all(hasattr(layer, name) for name in ("head_dim", "scaling", "layer_idx")):
        return None
    if len({part.bias is None for part in parts[:3]}) > 1:  # no family known has some of them only
        return None
    layer.float()
    dim = int(layer.head_dim)
    kv_heads = layer.k_proj.out_features // dim
    given = _given(kernels, int(layer.layer_idx), kv_heads, dim, layer.q_proj.in_features)
    try:
        wanted, _ = layer(**given)
    except Exception:  # wants positions of another shape, or to be told more
        return None
    (window,) = given["context"].planned.windows
    made = KernelAttention(layer, window, kernels)
    return made if same(made(**given)[0], wanted) else None


@torch.inference_mode()
def layer_like(layer: Any, kernels: Kernels) -> KernelLayer | None:
    if not KernelLayer.fits(layer):
        return None
    heads: Heads = layer.self_attn.heads
    given = _given(kernels, layer.self_attn.layer_idx, heads.kv, heads.dim, layer.self_attn.qkv.in_features)
    wanted = layer(**given)
    made = KernelLayer(layer, kernels)
    return made if isinstance(wanted, Tensor) and same(made(**given), wanted) else None


def _given(kernels: Kernels, layer_idx: int, kv_heads: int, dim: int, hidden: int) -> dict[str, Any]:
    """What a layer's forward takes, with a few random tokens of an empty sequence."""
    shape = KVShape(layer_idx + 1, kv_heads, dim, torch.float32)
    order = np.arange(_ROWS)
    batch = build_batch([Part(order, order, pages=[0], first=0)], _ROWS, torch.device("cpu"))
    angles = 6 * torch.rand(1, _ROWS, dim // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2)
    return {
        "hidden_states": _sample(hidden),
        "position_embeddings": (angles.cos(), angles.sin()),
        "attention_mask": None,
        "context": prepare(batch, KVCache(shape, 1, _ROWS, torch.device("cpu"), CpuAttention(kernels))),
    }


def _sample(size: int) -> Tensor:
    return torch.randn(1, _ROWS, size, generator=torch.Generator().manual_seed(0))


def same(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _CLOSE * wanted.abs().max())
