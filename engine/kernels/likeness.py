"""Checks whether a kernel module is equivalent to a model's module: by its parts, then by its results.

Independent of the kernels: each type of kernel replaces the modules that are verified to be equivalent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.kernels.spans import AttentionKernels
from engine.kv_cache import KVCache, KVShape

_ROWS = 3
_CLOSE = 1e-4
"""Tolerance relative to the largest value, for rounding. Another activation, or a norm that adds 1 to its
weight, differs far more.
"""


def replace_below(module: nn.Module, like: Callable[[nn.Module], nn.Module | None]) -> Counter[str]:
    """Replace modules by what ``like`` returns for them; return how many of each type were replaced.

    Does not descend into replaced modules, and keeps no reference to them.
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


def is_rms_norm(layer: nn.Module) -> bool:
    return type(layer).__name__.endswith("RMSNorm") and isinstance(getattr(layer, "weight", None), Tensor)


def eps_of(norm: Any) -> float | None:
    """Return the epsilon of a norm; ``None`` if it depends on the dtype."""
    eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
    return None if eps is None else float(eps)


def is_gated_mlp(layer: Any) -> bool:
    parts = [getattr(layer, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return all(type(part) is nn.Linear and part.bias is None for part in parts)


def is_attention(layer: Any) -> bool:
    """Whether ``layer`` is attention with a single head size and QKV biases for all or none."""
    parts: list[Any] = [getattr(layer, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    if not all(type(part) is nn.Linear for part in parts):
        return False
    if not all(hasattr(layer, name) for name in ("head_dim", "scaling", "layer_idx")):
        return False
    alike = len({part.bias is None for part in parts[:3]}) == 1
    return alike and layer.head_dim % 2 == 0 and layer.k_proj.out_features == layer.v_proj.out_features


def given(
    layer_idx: int, kv_heads: int, dim: int, hidden: int, attention: AttentionKernels, device: torch.device
) -> dict[str, Any]:
    """Return float32 arguments of a layer's forward, with a few random tokens at the start of a sequence."""
    shape = KVShape(layer_idx + 1, kv_heads, dim, torch.float32)
    order = np.arange(_ROWS)
    batch = build_batch([Part(order, order, pages=[0], first=0)], _ROWS, device)
    angles = 6 * torch.rand(1, _ROWS, dim // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2)
    return {
        "hidden_states": sample(hidden, device),
        "position_embeddings": (angles.cos().to(device), angles.sin().to(device)),
        "attention_mask": None,
        "context": prepare(batch, KVCache(shape, 1, _ROWS, device, attention)),
    }


def given_attention(layer: Any, attention: AttentionKernels) -> dict[str, Any]:
    """``given`` for a module that :func:`is_attention`."""
    dim = int(layer.head_dim)
    sizes = int(layer.layer_idx), layer.k_proj.out_features // dim, dim, layer.q_proj.in_features
    return given(*sizes, attention, layer.q_proj.weight.device)


def sample(size: int, device: torch.device) -> Tensor:
    return torch.randn(1, _ROWS, size, generator=torch.Generator().manual_seed(0)).to(device)


def same_norm(found: nn.Module, wanted: nn.Module, size: int, device: torch.device) -> bool:
    """Whether two norms agree, also on small inputs, which reveal the epsilon and where it is added."""
    x = sample(size, device)
    return all(same(found(own), wanted(own)) for own in (x, 1e-3 * x))


def same(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= _CLOSE * wanted.abs().max())
