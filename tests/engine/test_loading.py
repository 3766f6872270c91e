"""Checkpoints as the hub has them: what their configurations say beside the shapes of weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import read_eos_token_ids, still_rope
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelLoadError
from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden, request, run_core
from tests.models import Family
from training.teacher import Teacher


@pytest.fixture
def changed(tiny: BuildCheckpoint, tmp_path: Path) -> Callable[..., Path]:
    """``changed("llama", eos_token_id=5)``: a copy of a tiny checkpoint with another ``config.json``."""

    def make(family: Family, *, text: dict[str, Any] | None = None, **top: Any) -> Path:
        folder = shutil.copytree(tiny(family), tmp_path / "changed")
        config = json.loads((folder / "config.json").read_text()) | top
        config.get("text_config", config).update(text or {})
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize("family", ["internvl", "llama"])
def test_dynamic_rope_is_served_as_the_plain_one_that_it_is(
    family: Family, changed: Callable[..., Path]
) -> None:
    """InternVL3's: the scale depends on the longest position, but only past ``max_position_embeddings``."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    golden = load_golden(changed(family, text={"rope_parameters": rope}))
    assert golden.model.config.get_text_config().rope_parameters["rope_type"] == "dynamic"
    prompts = [golden.prompt("Hello"), golden.prompt("Something longer, beside it")]
    core = EngineCore.load(EngineConfig(model=str(golden.folder), device="cpu", kv_cache_memory=1 << 22))
    limit = core.target.max_position
    assert core.info.max_model_len <= limit
    arrivals = [(0, request(str(i), prompt, max_tokens=12)) for i, prompt in enumerate(prompts)]
    answers = run_core(core, arrivals).token_ids
    for i, prompt in enumerate(prompts):
        golden.compare(answers[str(i)], prompt, 12, f"prompt {i}")


def test_what_a_packed_row_would_falsify_is_refused(changed: Callable[..., Path]) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
    folder = changed(
        "llava", text={"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **factors}}
    )
    with pytest.raises(ModelLoadError, match="rope type"):
        EngineCore.load(EngineConfig(model=str(folder), device="cpu"))


def test_unknown_families_are_refused_with_the_known_ones(changed: Callable[..., Path]) -> None:
    folder = changed("llava", model_type="gpt2")
    with pytest.raises(ModelLoadError, match=r"known families: .*llama, llava, "):
        EngineCore.load(EngineConfig(model=str(folder), device="cpu"))


@pytest.mark.parametrize("kinds", ["dynamic", {"full_attention": "dynamic", "sliding_attention": "linear"}])
def test_the_rotary_embedding_of_a_draft_looks_at_no_other_row_either(kinds: Any) -> None:
    rotary = torch.nn.Module()
    rotary.rope_type = kinds
    draft = torch.nn.ModuleDict({"rotary": rotary})
    still_rope(draft)
    assert "dynamic" not in str(rotary.rope_type)
    assert str(rotary.rope_type) == str(kinds).replace("dynamic", "default")


def test_a_teacher_is_refused_where_the_engine_would_refuse_it(changed: Callable[..., Path]) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    folder = changed("llava", text={"rope_parameters": rope})
    with pytest.raises(ModelLoadError, match="rope type"):
        Teacher.load(folder, "float32", torch.device("cpu"))


def test_quantized_checkpoints_are_refused_with_a_sentence(changed: Callable[..., Path]) -> None:
    folder = changed("llama", quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ModelLoadError, match="quantized"):
        EngineCore.load(EngineConfig(model=str(folder), device="cpu"))


def test_a_class_does_not_say_which_token_ends_an_answer(changed: Callable[..., Path]) -> None:
    """``LlamaConfig`` says 2 where a file says nothing, which is an ordinary token of many vocabularies."""
    folder = changed("llama", eos_token_id=2)
    config = json.loads((folder / "config.json").read_text())
    del config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert read_eos_token_ids(EngineConfig(model=str(folder))) == {7}
    (folder / "generation_config.json").unlink()
    assert read_eos_token_ids(EngineConfig(model=str(folder))) == {2}, "as generate() would have it"
