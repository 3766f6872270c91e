"""Puts the Triton parts in the place of a model's own, where they are shown to compute the same.

As :mod:`engine.kernels.install` does for a CPU: by the parts that a module has and by its numbers, not by
families. Compared in float32, where another activation, or a norm that adds one, cannot pass for rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.attention import prepare
from engine.batch import Batch, Part, build_batch
from engine.kernels.install import listed, replace_below, same
from engine.kernels.spans import AttentionKernels, PlannedSpans
from engine.kernels.triton_layers import TritonMLP, TritonNorm, TritonSelfAttention, eps_of
from engine.kv_cache import KVCache, KVShape

log = logging.getLogger(__name__)

_ROWS = 3


def install(model: nn.Module, attention: AttentionKernels) -> str:
    """Replace what can be below ``model``; says what was replaced. One part at a time, so that a plain weight
    is freed before the next joined one is made.
    """
    return listed(replace_below(model, partial(_like, attention=attention)))


@torch.inference_mode()
def _like(child: nn.Module, attention: AttentionKernels) -> nn.Module | None:
    if type(child).__name__.endswith("RMSNorm"):
        return _norm_like(child)
    if hasattr(child, "gate_proj"):
        return _mlp_like(child)
    if hasattr(child, "q_proj"):
        return _attention_like(child, attention)
    return None


def _norm_like(layer: nn.Module) -> TritonNorm | None:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or eps_of(layer) is None:
        return None
    plain, sample = deepcopy(layer).float(), _sample(len(weight), weight.device)
    made = TritonNorm(plain)
    # Small numbers show what is added to their squares, and where.
    return TritonNorm(layer) if all(same(made(x), plain(x)) for x in (sample, 1e-3 * sample)) else None


def _mlp_like(layer: Any) -> TritonMLP | None:
    parts = [getattr(layer, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(type(part) is nn.Linear and part.bias is None for part in parts):
        return None
    plain, sample = (
        deepcopy(layer).float(),
        _sample(layer.gate_proj.in_features, layer.down_proj.weight.device),
    )
    return TritonMLP(layer) if same(TritonMLP(plain)(sample), plain(sample)) else None


def _attention_like(layer: Any, attention: AttentionKernels) -> TritonSelfAttention | None:
    """The window is the one that the layer asks for, wherever it has that from."""
    parts: list[Any] = [getattr(layer, name, None) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    if not all(type(part) is nn.Linear for part in parts):
        return None
    if not all(hasattr(layer, name) for name in ("head_dim", "scaling", "layer_idx")):
        return None
    if len({part.bias is None for part in parts[:3]}) > 1 or layer.head_dim % 2:
        return None
    if parts[1].out_features != parts[2].out_features:
        return None
    noting, plain = _Noting(attention), deepcopy(layer).float()
    given = _given(layer, noting)
    try:
        wanted, _ = plain(**given)
        (window,) = noting.windows
        found, _ = TritonSelfAttention(plain, window)(**given)
    except Exception as error:  # wants positions of another shape, or to be told more
        log.debug("%s stays as it is: %s", type(layer).__name__, error)
        return None
    return TritonSelfAttention(layer, window) if same(found, wanted) else None


@dataclass(slots=True)
class _Noting:
    """Attention that notes the windows it is asked for."""

    kernels: AttentionKernels
    windows: set[int | None] = field(default_factory=set)

    def plan(self, batch: Batch) -> PlannedSpans | None:
        planned = self.kernels.plan(batch)
        return None if planned is None else _Noted(planned, planned.sequences, self.windows)


@dataclass(slots=True)
class _Noted:
    planned: PlannedSpans
    sequences: Seq[int]
    windows: set[int | None]

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        scaling: float | None,
        sliding_window: int | None,
    ) -> None:
        self.windows.add(sliding_window)
        self.planned.attend(query, keys, values, out, scaling, sliding_window)


def _given(layer: Any, attention: AttentionKernels) -> dict[str, Any]:
    """What a layer's forward takes, with a few random tokens of an empty sequence."""
    dim, device = int(layer.head_dim), layer.q_proj.weight.device
    shape = KVShape(int(layer.layer_idx) + 1, layer.k_proj.out_features // dim, dim, torch.float32)
    order = np.arange(_ROWS)
    batch = build_batch([Part(order, order, pages=[0], first=0)], _ROWS, device)
    angles = 6 * torch.rand(1, _ROWS, dim // 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 2)
    return {
        "hidden_states": _sample(layer.q_proj.in_features, device),
        "position_embeddings": (angles.cos().to(device), angles.sin().to(device)),
        "attention_mask": None,
        "context": prepare(batch, KVCache(shape, 1, _ROWS, device, attention)),
    }


def _sample(size: int, device: torch.device) -> Tensor:
    return torch.randn(1, _ROWS, size, generator=torch.Generator().manual_seed(0)).to(device)
