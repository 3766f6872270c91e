"""Parts of layers for CUDA, in Triton's interpreter on a CPU, against the modules of transformers."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP, LlamaRMSNorm

from engine.kernels.likeness import replace_below
from tests.conftest import BuildCheckpoint
from tests.engine.whole_models import check_answers, loaded
from tests.golden.reference import load_golden

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux; see extra dev)")

from engine.kernels.triton_attention import TritonAttention
from engine.kernels.triton_install import install
from engine.kernels.triton_layers import TritonMLP, TritonNorm, TritonSelfAttention

FEW = TritonAttention(processors=1)


def mlp(activation: str = "silu", *, bias: bool = False) -> LlamaMLP:
    made = LlamaMLP(
        LlamaConfig(
            hidden_size=24, num_attention_heads=2, intermediate_size=40, hidden_act=activation, mlp_bias=bias
        )
    )
    return made.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.inference_mode()
def test_norms_and_gates_round_where_transformers_does(dtype: torch.dtype) -> None:
    """Equal to the last bit but for the order of sums. (The interpreter has no true bfloat16.)"""
    generator = torch.Generator().manual_seed(0)
    norm, gated = LlamaRMSNorm(37, eps=1e-3), mlp()
    norm.weight.data = torch.randn(37, generator=generator)
    for size, plain, made in (
        (37, norm.to(dtype), TritonNorm(norm)),
        (24, gated.to(dtype), TritonMLP(gated)),
    ):
        x = (30 * torch.randn(2, 5, 3, size, generator=generator)).to(dtype)[:, :, 1]  # not dense
        found, wanted = made(x), plain(x)
        torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)
        x[1, 2, 5] = float("nan")
        assert made(x).isnan().any(-1).sum() == 1, "a row that is no number is no other row's"


def test_only_what_computes_the_same_is_replaced() -> None:
    model: Any = nn.ModuleDict(
        {
            "mlp": mlp(),
            "gelu": mlp("gelu"),
            "biased": mlp(bias=True),
            "norm": LlamaRMSNorm(24),
            "gemma": GemmaRMSNorm(24),  # multiplies by one plus its weight
            "plain": nn.RMSNorm(24, eps=1e-5),
            "typed": nn.RMSNorm(24),  # adds what its type is exact to
            "linear": nn.Linear(24, 9),
        }
    ).requires_grad_(False)
    nn.init.normal_(model["gemma"].weight)
    x = torch.randn(1, 5, 24)
    with torch.inference_mode():
        before = {name: module(x) for name, module in model.items()}
        said = install(model, FEW)
        for name, module in model.items():
            torch.testing.assert_close(module(x), before[name], rtol=1e-4, atol=1e-4)
    kinds = [type(module) for module in model.values()]
    assert kinds == [
        TritonMLP,
        LlamaMLP,
        LlamaMLP,
        TritonNorm,
        GemmaRMSNorm,
        TritonNorm,
        nn.RMSNorm,
        nn.Linear,
    ]
    assert said == "1 LlamaMLP, 1 LlamaRMSNorm, 1 RMSNorm"


@pytest.mark.parametrize(
    ("family", "with_attention"),
    [
        ("llava", True),
        ("qwen2_vl", True),
        ("qwen2", True),
        ("mistral_sliding", True),
        ("qwen3", False),
        ("gemma3", False),
    ],
)
def test_a_model_of_these_parts_says_the_same(
    family: Any, with_attention: bool, tiny: BuildCheckpoint
) -> None:
    """Pictures, windows and trees, through the whole engine. A family with other parts
    (norms of heads) keeps them.
    """
    golden = load_golden(tiny(family))
    config, target = loaded(golden, FEW)
    model: Any = target.adapter.text_model
    install(model, FEW)
    parts = [type(module) for module in model.modules()]
    assert parts.count(TritonSelfAttention) == (len(model.layers) if with_attention else 0)
    assert TritonNorm in parts or family == "gemma3"
    check_answers(golden, config, target)


def test_what_is_replaced_is_freed_before_the_next() -> None:
    """Or a large model would need its weights twice while it is loaded."""
    model: Any = nn.Sequential(*(nn.Sequential(mlp()) for _ in range(3)))
    old = [weakref.ref(block[0]) for block in model]
    alive = []

    def like(child: nn.Module) -> nn.Module | None:
        alive.append(sum(ref() is not None for ref in old))
        return TritonMLP(child) if isinstance(child, LlamaMLP) else None

    replace_below(model, like)
    assert alive == [3, 3, 2, 2, 1, 1]
