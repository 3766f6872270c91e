"""The kernels as others compile them: with the vectors of any 64-bit PC, and by clang."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.kernels import build
from engine.kernels.check import CLOSE, worst_difference
from engine.kernels.cpu import Kernels
from engine.kernels.modules import KernelLinear, KernelMLP, KernelNorm
from engine.kernels.rows import CpuAttention
from engine.kv_cache import KVShape
from tests.engine.own_kernels import own_kernels
from tests.engine.test_kernels import KINDS, MLP, stored

BASELINE = "-march=x86-64"


def built(folder: Path, monkeypatch: pytest.MonkeyPatch, compiler: str | None, march: str) -> Kernels:
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    flags = [march if flag == "-march=native" else flag for flag in build.FLAGS]
    monkeypatch.setattr(build, "FLAGS", tuple(flags))
    library = build.load_library(folder / "kernels")
    assert library is not None
    return Kernels(library, 2)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another kind of processor")
def test_kernels_for_any_64_bit_pc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four lanes, half precision without help."""
    own_kernels()
    compute_the_same(built(tmp_path, monkeypatch, None, BASELINE))


@pytest.mark.program
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++")
def test_kernels_compiled_by_clang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_the_same(built(tmp_path, monkeypatch, "clang++", "-march=native"))


@torch.inference_mode()
def compute_the_same(kernels: Kernels) -> None:
    x = torch.randn(9, 70, generator=torch.Generator().manual_seed(1))
    for kind in KINDS:
        weight = stored((61, 70), kind, 2)
        layer = KernelLinear(weight, None, kernels)
        assert layer._packed.blocks.dtype == kind
        torch.testing.assert_close(layer(x), x @ weight.T, rtol=1e-4, atol=1e-4)
        assert torch.equal(layer(x[:2]), layer(x)[:2]), "whatever runs beside it"
    mlp, norm = MLP(70, 90), nn.RMSNorm(70, eps=1e-5)
    torch.testing.assert_close(KernelMLP(mlp, kernels)(x), mlp(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(KernelNorm(norm, kernels)(x), norm(x))
    shape = KVShape(1, 3, 24, torch.float32)
    for window in (None, 40):
        found = worst_difference(CpuAttention(kernels), shape, 9, torch.device("cpu"), window=window)
        assert found <= CLOSE[torch.float32]
