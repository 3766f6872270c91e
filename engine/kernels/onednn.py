"""Linear layers with weights packed for oneDNN, which speeds up passes of few rows on some CPUs.

A plain float32 linear layer uses a matrix library for which, on CPUs it is not optimised for, two to four
rows are as expensive as twelve; packed weights keep that curve flat. On other CPUs packing costs a single row
more than it saves (``docs/LOG.md`` has both tables), so it is measured once at load. Not used on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

_ROWS = (1, 4, 8)  # typical row counts when decoding a few streams or a draft tree
_WORTHWHILE = 0.85  # packing must save this much to be chosen: less may be noise


class OnednnLinear(nn.Module):
    """Equivalent of the ``nn.Linear`` it replaces, with a packed copy of its weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return out


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # Not every processor supports bfloat16 (AVX2 alone is not enough).
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack_linears(model: nn.Module) -> int:
    """Replace every ``nn.Linear`` in ``model`` if that is measured to pay; return how many were replaced."""
    found = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]
    distinct = {(child.in_features, child.out_features): child for _, _, child in found}
    if not packing_pays(list(distinct.values())):
        return 0
    count = len(found)
    distinct.clear()
    while found:  # one at a time, so that a plain copy is freed before the next packed one is made
        module, name, child = found.pop()
        setattr(module, name, OnednnLinear(child))
    return count


@torch.inference_mode()
def packing_pays(linears: Sequence[nn.Linear], repeats: int = 30) -> bool:
    """Whether packed products are clearly faster over the usual row counts.

    Both variants are timed alternately and the best times compared, so that other load affects both.
    """
    plain = packed = 0.0
    for linear in linears:
        candidate = OnednnLinear(linear)
        for rows in _ROWS:
            inputs = torch.zeros(1, rows, linear.in_features, dtype=linear.weight.dtype)
            times = [(_seconds(linear, inputs), _seconds(candidate, inputs)) for _ in range(repeats)]
            plain += min(a for a, _ in times)
            packed += min(b for _, b in times)
    return packed < _WORTHWHILE * plain


def _seconds(module: nn.Module, inputs: torch.Tensor) -> float:
    start = time.perf_counter()
    module(inputs)
    return time.perf_counter() - start
