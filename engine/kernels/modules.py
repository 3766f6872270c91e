"""Layers that run on the CPU kernels. :mod:`engine.kernels.install` replaces a model's layers by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.kernels.cpu import Kernels, Product, narrowest
from engine.kernels.likeness import eps_of


class KernelLinear(nn.Module):
    """A linear layer with float32 arithmetic.

    Its weight ``[outputs, inputs]`` is stored in the narrowest dtype that represents it exactly.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: Kernels) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._kernels, self._packed = kernels, kernels.pack(weight.detach(), narrowest(weight))
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self.product = Product.of(self._packed.blocks, self.out_features, self._bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.linear(inputs, self.product)

    def rows(self, chosen: Tensor) -> KernelLinear:
        """Return the layer with only the outputs ``chosen``, int64 ``[V]``."""
        bias = None if self._bias is None else self._bias[chosen]
        return KernelLinear(self._packed.dense()[chosen], bias, self._kernels)


class KernelNorm(nn.Module):
    """An RMS norm: ``x / rms(x) * weight``."""

    def __init__(self, norm: Any, kernels: Kernels) -> None:
        super().__init__()
        self._kernels, self.weight = kernels, norm.weight.detach().float().contiguous()
        eps = eps_of(norm)
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.rms_norm(inputs, self.weight, self.eps)


class KernelMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases, from ``gate_proj``, ``up_proj`` and ``down_proj``."""

    def __init__(self, mlp: Any, kernels: Kernels) -> None:
        super().__init__()
        gate, up, down = (part.weight.detach() for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        kind = narrowest(gate, up, down)
        self._kernels = kernels
        self._gate_up, self._down = kernels.pack_pair(gate, up, kind), kernels.pack(down, kind)
        self.gate_up = Product.of(self._gate_up, len(gate))
        self.down = Product.of(self._down.blocks, len(down))

    def forward(self, inputs: Tensor) -> Tensor:
        return self._kernels.gated_mlp(inputs, self.gate_up, self.down)
