"""Linear layers with weights packed for oneDNN, which few-row passes on a CPU need.

A plain float32 linear goes to a matrix library whose cost jumps between one row and two to four; packed
weights keep the curve flat (``docs/performance.md`` has the table). Nothing here is used on a GPU.
"""

from __future__ import annotations

import time

import torch
from torch import nn

_ROWS = (1, 4, 8)  # the row counts that decoding a few streams, or a draft tree, brings


class PackedLinear(nn.Module):
    """Same product as the ``nn.Linear`` it replaces, from a packed copy of its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    available = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return available and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def pack_linears(model: nn.Module) -> int:
    """Replace every ``nn.Linear`` below ``model`` where packing is measured to pay; returns how many.

    One layer of each shape is timed both ways, a few milliseconds each.
    """
    verdicts: dict[tuple[int, int], bool] = {}
    replaced = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            shape = (child.in_features, child.out_features)
            if shape not in verdicts:
                verdicts[shape] = packing_pays(child)
            if verdicts[shape]:
                setattr(module, name, PackedLinear(child))
                replaced += 1
    return replaced


def packing_pays(linear: nn.Linear) -> bool:
    """Whether the packed product is faster over the usual row counts, by the sum of their best times."""
    packed = PackedLinear(linear)
    inputs = [torch.randn(1, rows, linear.in_features, dtype=linear.weight.dtype) for rows in _ROWS]
    return sum(_best_time(packed, x) for x in inputs) < sum(_best_time(linear, x) for x in inputs)


@torch.inference_mode()
def _best_time(module: nn.Module, inputs: torch.Tensor, repeats: int = 10) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        module(inputs)
        best = min(best, time.perf_counter() - start)
    return best
