"""Checkpoints that are stored in half precision are loaded so, and compute the numbers of float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlavaNextConfig

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.checkpoint import has_own_buffers, resolve_dtype, stored_half
from engine.config import EngineConfig
from engine.kernels.cpu import Kernels
from engine.kv_cache import KVCache
from engine.target import TargetModel
from tests.engine.own_kernels import own_kernels
from tests.models import TEXT_MODELS, VLMS


@pytest.fixture(scope="module", autouse=True)
def kernels() -> Kernels:
    return own_kernels()


def stored(folder: Path, at: Path, dtype: torch.dtype) -> Path:
    """A copy of the checkpoint with all floating weights in ``dtype``."""
    at.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            weights = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
            save_file(weights, at / path.name, metadata={"format": "pt"})
        else:
            (at / path.name).write_bytes(path.read_bytes())
    return at


def hidden(target: TargetModel) -> torch.Tensor:
    cache, order = KVCache(target.kv_shape, 8, 8, target.device, target.attention), np.arange(20)
    positions = np.stack([order] * 3) if target.family.startswith("qwen") and "vl" in target.family else order
    part = Part(order + 5, positions, pages=list(range(8)), first=0)
    found: torch.Tensor = target.forward(prepare(build_batch([part], 8, target.device), cache)).hidden
    return found


@pytest.mark.parametrize("family", [*TEXT_MODELS, *VLMS])
def test_nothing_is_lost_by_loading_as_stored(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = stored(tiny(family), tmp_path / "half", torch.bfloat16)
    found = TargetModel.load(EngineConfig(model=str(folder)))
    wanted = TargetModel.load(EngineConfig(model=str(folder), cpu_kernels=False))
    assert found.dtype == wanted.dtype == torch.float32
    weights = found.adapter.text_model.get_input_embeddings().weight  # type: ignore[operator]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(hidden(found), hidden(wanted), rtol=1e-4, atol=1e-4)


def test_half_precision_that_is_asked_for_rounds_weights_only(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    rounded = stored(tiny("llama"), tmp_path / "half", torch.float16)
    found = TargetModel.load(EngineConfig(model=str(tiny("llama")), dtype="float16"))
    wanted = TargetModel.load(EngineConfig(model=str(rounded)))
    assert torch.equal(hidden(found), hidden(wanted))


def test_which_type_a_checkpoint_is_stored_in(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("llama")
    assert stored_half(str(folder), None) is None
    half = stored(folder, tmp_path / "half", torch.float16)
    assert stored_half(str(half), None) == torch.float16
    (whole,) = half.glob("*.safetensors")
    save_file(load_file(whole) | {"places": torch.ones(2, dtype=torch.int64)}, whole)
    assert stored_half(str(half), None) == torch.float16
    save_file(load_file(whole) | {"one": torch.ones(2)}, whole)
    assert stored_half(str(half), None) is None


@pytest.mark.parametrize("sharded", [False, True])
def test_only_what_transformers_reads_is_looked_at(
    sharded: bool, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hub's repository that holds the weights a second time, for another program."""
    repository = tmp_path / "models--some--model"
    folder = stored(tiny("llama"), tmp_path / "half", torch.float16)
    if sharded:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    save_file({"one": torch.ones(2)}, folder / "consolidated.safetensors")
    for part in ("snapshots", "refs"):
        (repository / part).mkdir(parents=True)
    commit = "0" * 40
    (repository / "refs" / "main").write_text(commit)
    folder.rename(repository / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert stored_half("some/model", None) == torch.float16


@pytest.mark.parametrize(
    ("whole", "text", "wanted"),
    [
        (torch.float16, torch.bfloat16, torch.float16),  # llava-v1.6-mistral-7b's
        (None, torch.bfloat16, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (None, None, torch.bfloat16),
    ],
)
def test_on_a_gpu_a_checkpoint_has_the_type_that_it_has_for_transformers(
    whole: torch.dtype | None, text: torch.dtype | None, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which reads it at the root; the language model's part may name the one that it was made from."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = LlavaNextConfig(text_config=LlamaConfig(dtype=text), dtype=whole)
    assert (config.dtype, config.get_text_config().dtype) == (whole, text)
    assert resolve_dtype(EngineConfig(model="any"), config) == wanted


def test_numbers_that_a_model_makes_itself_are_noticed() -> None:
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    model.register_buffer("stored", torch.ones(1, dtype=torch.bfloat16))
    assert not has_own_buffers(model, torch.bfloat16)
    model.register_buffer("scale", torch.tensor(11.3, dtype=torch.bfloat16), persistent=False)
    assert has_own_buffers(model, torch.bfloat16)
