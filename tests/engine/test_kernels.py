"""Our CPU kernels against torch: same numbers, whatever the rows, sizes and types of weights."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm

from engine.attention import ATTENTION_NAME, prepare, register
from engine.batch import Part, build_batch
from engine.config import EngineConfig
from engine.host.cache_folder import cache_folder
from engine.kernels import build
from engine.kernels.attention import KernelAttention
from engine.kernels.cpu import Kernels, Seen, narrowest
from engine.kernels.install import attention_like, install
from engine.kernels.layer import KernelLayer
from engine.kernels.modules import KernelLinear, KernelMLP, KernelNorm
from engine.kernels.rows import CpuAttention
from engine.kv_cache import KVCache, KVShape
from engine.target import TargetModel
from tests.engine.own_kernels import own_kernels
from tests.models import FAMILIES, Family

CPU = torch.device("cpu")
KINDS = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return own_kernels()


def stored(shape: tuple[int, ...], kind: torch.dtype, seed: int) -> torch.Tensor:
    """float32 numbers that ``kind`` holds exactly, tiny ones among them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(
        -6, 1, shape, generator=generator
    )
    return numbers.to(kind).float()


class MLP(nn.Module):
    def __init__(self, inputs: int, width: int, act: Any = F.silu) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(inputs, width, bias=False) for _ in range(2))
        self.down_proj, self.act = nn.Linear(width, inputs, bias=False), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
        return out


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 37),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    bias=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def test_a_linear_layer_is_the_same_product(
    kernels: Kernels, rows: int, inputs: int, outputs: int, kind: torch.dtype, bias: bool, seed: int
) -> None:
    weight = stored((outputs, inputs), kind, seed)
    added = torch.randn(outputs) if bias else None
    layer = KernelLinear(weight, added, kernels)
    x = torch.randn(2, rows, inputs, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(x), F.linear(x, weight, added), rtol=1e-4, atol=1e-4)
    strided = torch.randn(rows, 2, inputs)[:, 0]
    torch.testing.assert_close(layer(strided), F.linear(strided, weight, added), rtol=1e-4, atol=1e-4)
    chosen = torch.arange(outputs).flip(0)[: outputs // 2 + 1]
    torch.testing.assert_close(layer.rows(chosen)(x), layer(x)[..., chosen], rtol=0, atol=0)


def test_a_row_gives_the_same_bits_whatever_runs_beside_it(kernels: Kernels) -> None:
    """So that a token verified in a tree has the logits that it has when decoded alone."""
    layer = KernelLinear(stored((50, 64), torch.float16, 1), None, kernels)
    own = MLP(64, 90)
    mlp = KernelMLP(own, kernels)
    norm = KernelNorm(LlamaRMSNorm(64), kernels)
    x = torch.randn(1, 41, 64)
    for module in (layer, mlp, norm):
        together = module(x)
        for rows in (1, 2, 3, 7, 8, 9, 16, 41):
            assert torch.equal(module(x[:, :rows]), together[:, :rows])


def test_a_row_attends_to_the_same_bits_alone_and_in_a_tree(kernels: Kernels) -> None:
    """A node whose ancestors are scattered among other branches, and the same tokens one after the other."""
    generator = torch.Generator().manual_seed(3)
    prefix, path = 45, [0, 3, 4, 9, 17]  # nodes of the tree that lead to the last one
    keys, values = (torch.randn(80, 2, 24, generator=generator) for _ in range(2))
    query, order = torch.randn(1, 6, 24, generator=generator), torch.arange(80)
    dense = torch.cat([order[:prefix], torch.tensor(path) + prefix, order[prefix + len(path) :]])

    def attend(table: torch.Tensor, prefix: int, mask: int, beside: int) -> torch.Tensor:
        one = torch.ones(1 + beside, dtype=torch.int64)
        rows = torch.cat([query, torch.randn(beside, 6, 24, generator=generator)])
        masks = torch.randint(1, 1 << 18, (1 + beside,), generator=generator)
        masks[0] = mask
        seen = Seen(torch.arange(1 + beside), 0 * one, 0 * one, prefix * one, masks, table[None])
        out = torch.empty_like(rows)
        kernels.attend(rows, keys, values, out, seen, 0.2)
        return out[0]

    in_tree = attend(order, prefix, sum(1 << node for node in path), beside=8)
    assert torch.equal(in_tree, attend(dense, prefix, (1 << len(path)) - 1, beside=0))
    assert torch.equal(in_tree, attend(dense, prefix + len(path) - 1, 1, beside=0)), "decoded one by one"


def test_the_work_is_the_same_however_many_share_it(kernels: Kernels) -> None:
    """Threads that are fast asleep, that come late or that never get a turn; two callers at a time."""
    many = Kernels(build.load_library(cache_folder() / "kernels"), 5)
    alone = Kernels(build.load_library(cache_folder() / "kernels"), 1)
    weight = stored((700, 96), torch.bfloat16, 4)
    x = torch.randn(3, 96)
    layers = [KernelLinear(weight, None, own) for own in (alone, many)]
    mlps = [KernelMLP(own_mlp, own) for own_mlp in [MLP(96, 300)] for own in (alone, many)]
    wanted = layers[0](x), mlps[0](x)

    def again(count: int) -> bool:
        return all(
            torch.equal(layers[1](x), wanted[0]) and torch.equal(mlps[1](x), wanted[1]) for _ in range(count)
        )

    assert again(300)
    for _ in range(5):
        time.sleep(0.005)  # longer than they wait for work
        assert again(2)
    with ThreadPoolExecutor(2) as callers:
        assert all(callers.map(again, [200, 200]))


def test_threads_end_with_their_owner() -> None:
    before = psutil.Process().num_threads()
    own = Kernels(build.load_library(cache_folder() / "kernels"), 4)
    assert psutil.Process().num_threads() == before + 3
    del own
    assert psutil.Process().num_threads() == before


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_layer_at_once_gives_the_bits_of_its_parts(kernels: Kernels, rows: int) -> None:
    """A sequence may run alone, and then beside a chunk of a prompt, which goes part by part."""
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 90}
    config = LlamaConfig(**sizes, num_hidden_layers=1, head_dim=8, attn_implementation=ATTENTION_NAME)
    register()
    model = nn.ModuleList([LlamaDecoderLayer(config, 0).eval()])
    install(model, kernels)
    (layer,) = model
    assert isinstance(layer, KernelLayer)
    order, cache = (
        np.arange(rows),
        KVCache(KVShape(1, 2, 8, torch.float32), 4, 16, CPU, CpuAttention(kernels)),
    )
    cos, sin = torch.randn(2, 1, rows, 8)
    found = []
    for module in (layer, layer.layer):
        context = prepare(build_batch([Part(order, order, pages=[2, 0, 1], first=0)], 16, CPU), cache)
        hidden = torch.randn(1, rows, 48, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            found.append(module(hidden, position_embeddings=(cos, sin), context=context))
    assert torch.equal(found[0], found[1])


def test_weights_are_kept_in_the_narrowest_type_that_holds_them() -> None:
    for kind in KINDS:
        assert narrowest(stored((30, 30), kind, 2)) == kind
    assert narrowest(stored((4, 4), torch.bfloat16, 2), stored((9, 9), torch.float16, 3)) == torch.float32
    assert narrowest(torch.tensor([[1e30]])) == torch.float32  # float16 has no such number
    assert narrowest(torch.tensor([[float("inf"), 1.0]])) == torch.bfloat16


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 40),
    width=st.integers(1, 50),
    seed=st.integers(0, 1 << 16),
)
def test_a_gated_mlp_is_the_same_function(
    kernels: Kernels, rows: int, inputs: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    own = MLP(inputs, width)
    x = 30 * torch.randn(1, rows, inputs)  # gates far into both ends of the sigmoid
    torch.testing.assert_close(KernelMLP(own, kernels)(x), own(x), rtol=1e-4, atol=1e-3)


def test_norms_and_not_a_number(kernels: Kernels) -> None:
    norm = LlamaRMSNorm(37, eps=1e-3)
    nn.init.normal_(norm.weight)
    x = torch.randn(1, 30, 3, 37)
    torch.testing.assert_close(KernelNorm(norm, kernels)(x), norm(x))
    x[0, 4, 1, 5] = float("nan")
    out = KernelNorm(norm, kernels)(x)
    assert out.isnan().sum() == 37
    broken = KernelMLP(MLP(37, 8), kernels)(x)
    assert broken[0, 4, 1].isnan().all()
    assert broken.isnan().sum() == 37


def test_only_what_computes_the_same_is_replaced(kernels: Kernels) -> None:
    model = nn.ModuleDict(
        {
            "mlp": MLP(24, 40),
            "other_mlp": MLP(24, 40, F.gelu),
            "norm": LlamaRMSNorm(24),
            "gemma": GemmaRMSNorm(24),  # multiplies by one plus its weight
            "plain": nn.RMSNorm(24),
            "linear": nn.Linear(24, 9),
        }
    )
    nn.init.normal_(model["gemma"].weight)
    x = torch.randn(1, 5, 24)
    with torch.inference_mode():
        before = {name: module(x) for name, module in model.items()}
        said = install(model, kernels)
        for name, module in model.items():
            torch.testing.assert_close(module(x), before[name], rtol=1e-4, atol=1e-4)
    kinds = {name: type(module) for name, module in model.items()}
    assert kinds["mlp"] is KernelMLP
    assert kinds["other_mlp"] is MLP
    assert {type(child) for child in model["other_mlp"].children()} == {KernelLinear}
    assert kinds["norm"] is kinds["plain"] is KernelNorm
    assert kinds["gemma"] is GemmaRMSNorm
    assert kinds["linear"] is KernelLinear
    assert said == "4 Linear, 1 LlamaRMSNorm, 1 MLP, 1 RMSNorm"


def test_a_norm_that_adds_more_than_it_says_is_left_alone(kernels: Kernels) -> None:
    """Which shows where numbers are small, as they are behind embeddings."""

    class OtherRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = F.rms_norm(hidden_states, self.weight.shape, self.weight, 1e-5)
            return out

    model = nn.ModuleList([OtherRMSNorm(24, eps=1e-6), OtherRMSNorm(24, eps=1e-5)])
    install(model, kernels)
    assert [type(norm) for norm in model] == [OtherRMSNorm, KernelNorm]


def test_it_is_compiled_once_into_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_kernels()
    folder = tmp_path / "kernels"
    assert Kernels.load(folder) is not None
    (library,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    made = library.stat().st_mtime_ns
    assert Kernels.load(folder) is not None
    assert library.stat().st_mtime_ns == made

    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(Kernels, "cost", lambda self: 2.5)
        assert Kernels.load(folder) is None
        assert "take 2.5 times as long as torch" in caplog.text
        folder.chmod(0o777)
        assert Kernels.load(folder) is None
        assert "written by others" in caplog.text
        monkeypatch.setattr(build, "SOURCE", tmp_path / "wrong.cpp")
        (tmp_path / "wrong.cpp").write_text("int main( {")
        assert Kernels.load(tmp_path / "second") is None
        assert "could not compile" in caplog.text
        monkeypatch.setitem(os.environ, "CXX", "/nowhere/c++ -O3")
        assert Kernels.load(tmp_path / "third") is None
        assert "no C++ compiler found" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_with_kernels(family: Family, tiny: Callable[..., Path]) -> None:
    """Windows, biases and norms of heads included; 40 tokens in chunks, so past the window and the page."""
    own_kernels()
    hidden = []
    for cpu_kernels in (False, True):
        target = TargetModel.load(EngineConfig(model=str(tiny(family)), cpu_kernels=cpu_kernels))
        cache = KVCache(target.kv_shape, 8, 8, target.device, target.attention)
        kinds = Counter(type(module) for module in target.adapter.text_model.modules())
        rows, order = [], np.arange(40)
        for first, last in ((0, 17), (17, 18), (18, 40)):
            part = Part(order[first:last] + 5, order[first:last], pages=list(range(8)), first=first)
            rows.append(target.forward(prepare(build_batch([part], 8, target.device), cache)).hidden)
        hidden.append(torch.cat(rows))
        assert kinds[KernelMLP] == (3 if cpu_kernels else 0)
        assert kinds[KernelAttention] == (3 if cpu_kernels and family != "qwen3" else 0)  # norms of heads
        assert kinds[KernelLayer] == kinds[KernelAttention]
        assert kinds[nn.Linear] == (0 if cpu_kernels else kinds[nn.Linear])
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-3, atol=1e-3)


def test_the_compiler_may_be_a_command_of_several_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_kernels()
    compiler = os.environ.get("CXX") or "c++"
    monkeypatch.setenv("CXX", f"env {compiler} -DSPECVLM_ANY")
    assert build.load_library(tmp_path / "kernels") is not None


def test_an_attention_layer_with_some_biases_only_is_left_alone(kernels: Kernels) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True}
    config = LlamaConfig(**sizes, num_hidden_layers=1, attn_implementation=ATTENTION_NAME)
    register()
    whole, part = LlamaAttention(config, 0).eval(), LlamaAttention(config, 0).eval()
    part.k_proj.bias = None
    assert isinstance(attention_like(whole, kernels), KernelAttention)
    assert attention_like(part, kernels) is None
