"""Packing replaces products without changing them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.kernels import onednn
from engine.kernels.onednn import OnednnLinear, can_pack, pack_linears

needs_packing = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="this build of torch has no oneDNN"
)


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_is_the_same_product(bias: bool) -> None:
    linear = nn.Linear(48, 80, bias=bias)
    packed = OnednnLinear(linear)
    with torch.inference_mode():
        for rows in (1, 2, 7, 64):
            inputs = torch.randn(1, rows, 48, generator=torch.Generator().manual_seed(rows))
            torch.testing.assert_close(packed(inputs), linear(inputs))


@needs_packing
@pytest.mark.parametrize("pays", [True, False])
def test_every_linear_is_replaced_or_none(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "packing_pays", lambda linears: pays)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 16)))
    inputs = torch.ones(1, 3, 8)
    with torch.inference_mode():
        before = model(inputs)
        assert pack_linears(model) == (2 if pays else 0)
        torch.testing.assert_close(model(inputs), before)
    kinds = [type(m) for m in model.modules() if hasattr(m, "in_features")]
    assert set(kinds) == ({OnednnLinear} if pays else {nn.Linear})
