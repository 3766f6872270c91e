"""All layers of a model as one call: the same numbers, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from engine.attention import ATTENTION_NAME, prepare, register
from engine.batch import Part, build_batch
from engine.kernels.cpu import Kernels
from engine.kernels.install import install
from engine.kernels.rows import CpuAttention
from engine.kernels.stack import KernelStack
from engine.kv_cache import KVCache, KVShape
from tests.engine.own_kernels import own_kernels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return own_kernels()


class Scaled(LlamaModel):
    """Does something after its layers that no layer knows of."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = 1.5 * output.last_hidden_state
        return output


@pytest.mark.parametrize("rows", [1, 6, 30])
def test_all_layers_as_one_call_are_the_model_and_nothing_else_is(kernels: Kernels, rows: int) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    config = LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=50, attn_implementation=ATTENTION_NAME)
    register()
    order, embeddings = np.arange(rows), torch.randn(rows, 48, generator=torch.Generator().manual_seed(2))
    for model, served in ((LlamaModel(config).eval(), True), (Scaled(config).eval(), False)):
        install(model, kernels)
        stack = KernelStack.of(model, kernels)
        assert stack is not None
        for _ in range(2):  # shown, then used
            cache = KVCache(KVShape(3, 2, 8, torch.float32), 4, 16, CPU, CpuAttention(kernels))
            context = prepare(build_batch([Part(order, order, [2, 0, 1], first=0)], 16, CPU), cache)
            with torch.inference_mode():
                wanted = model(
                    inputs_embeds=embeddings[None],
                    position_ids=torch.arange(rows)[None],
                    use_cache=False,
                    context=context,
                ).last_hidden_state[0]
                kept = [torch.stack(cache.keys).clone(), torch.stack(cache.values).clone()]
                found = stack.forward(embeddings, context)
            assert (found is not None) == served
            assert found is None or torch.equal(found, wanted)
            assert torch.equal(torch.stack(cache.keys), kept[0])
            assert torch.equal(torch.stack(cache.values), kept[1])


def test_a_model_with_other_layers_or_parts_is_no_stack(kernels: Kernels) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 50}
    register()
    config = LlamaConfig(**sizes, attn_implementation=ATTENTION_NAME)
    plain = LlamaModel(config).eval()
    assert KernelStack.of(plain, kernels) is None
    install(plain, kernels)
    assert KernelStack.of(plain, kernels) is not None
    plain.extra = nn.Identity()
    assert KernelStack.of(plain, kernels) is None
