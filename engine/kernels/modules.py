"""Puts the kernels in the place of a model's layers, where they are shown to compute the same.

Nothing here knows families: a module is replaced if it looks like a linear layer, an RMS norm or a gated MLP
and, for the latter two, gives the same numbers for random input.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.cpu import Kernels, narrowest, pack, pack_pair

_CLOSE = 1e-4
"""Of the largest number: only rounding may differ. Another activation, or a norm that adds one, is far off."""


class KernelLinear(nn.Module):
    """A linear layer in float32 arithmetic whose weight ``[outputs, inputs]`` is kept in the narrowest type
    that holds it exactly.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._kernels, self._packed = kernels, pack(weight.detach(), narrowest(weight))
        self._bias = None if bias is None else bias.detach().float().contiguous()

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.linear(inputs, self._packed, self._bias)

    def rows(self, chosen: Tensor) -> KernelLinear:
        """The layer with these outputs only, int64 ``[V]``."""
        bias = None if self._bias is None else self._bias[chosen]
        return KernelLinear(self._packed.dense()[chosen], bias, self._kernels)


class KernelNorm(nn.Module):
    """A norm by root mean square: ``x / rms(x) * weight``."""

    def __init__(self, norm: Any, kernels: Kernels) -> None:
        super().__init__()
        self._kernels, self._weight = kernels, norm.weight.detach().float().contiguous()
        eps = getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", None)
        self._eps = float(torch.finfo(torch.float32).eps if eps is None else eps)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.rms_norm(inputs, self._weight, self._eps)


class KernelMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases."""

    def __init__(self, mlp: Any, kernels: Kernels) -> None:
        super().__init__()
        gate, up, down = (getattr(mlp, name).weight.detach() for name in _PROJECTIONS)
        kind = narrowest(gate, up, down)
        self._kernels, self._gate_up, self._down = kernels, pack_pair(gate, up, kind), pack(down, kind)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.gated_mlp(inputs, self._gate_up, self._down)


def install(model: nn.Module, kernels: Kernels) -> str:
    """Replace what can be below ``model``, float32; says what was replaced.

    One layer at a time, so that a plain weight is freed before the next packed one is made.
    """
    done: Counter[str] = Counter()
    for kind in (KernelMLP, KernelNorm, KernelLinear):  # an MLP as a whole, before its parts
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                made = _replacement(kind, child, kernels)
                if made is not None:
                    setattr(parent, name, made)
                    done[type(child).__name__] += 1
    return ", ".join(f"{count} {name}" for name, count in sorted(done.items()))


@torch.inference_mode()
def _replacement(kind: type[nn.Module], child: nn.Module, kernels: Kernels) -> nn.Module | None:
    """A module of this kind for ``child``, if that is the same function."""
    if kind is KernelLinear:
        return KernelLinear(child.weight, child.bias, kernels) if type(child) is nn.Linear else None
    if kind is KernelNorm:
        weight = getattr(child, "weight", None)
        if not type(child).__name__.endswith("RMSNorm") or not isinstance(weight, Tensor):
            return None
        made: nn.Module = KernelNorm(child, kernels)
        inputs = len(weight)
    else:
        projections: list[Any] = [getattr(child, name, None) for name in _PROJECTIONS]
        if not all(type(p) is nn.Linear and p.bias is None for p in projections):
            return None
        made = KernelMLP(child, kernels)
        inputs = int(projections[0].in_features)
    sample = torch.randn(1, 3, inputs, generator=torch.Generator().manual_seed(0))
    wanted = child(sample)
    return made if (made(sample) - wanted).abs().max() <= _CLOSE * wanted.abs().max() else None


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
