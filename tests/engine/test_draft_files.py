"""Draft folders in our own format: what is written is read again, and what does not fit says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen2Config

from compressors.elastic import BranchConfig, Elastic, ElasticConfig
from engine.draft.eagle import EagleDraft
from engine.draft.files import DraftConfig, OwnDraft, draft_config, fingerprint, load_draft, save_draft
from engine.errors import ModelLoadError

VOCAB, HIDDEN = 40, 32


def target(**changes: Any) -> LlamaConfig:
    sizes = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3}
    return LlamaConfig(**{**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, **changes})


def drawn(**layout: Any) -> EagleDraft:
    draft = EagleDraft(target(), attn_implementation="sdpa", **layout)
    noise = torch.Generator().manual_seed(1)
    for value in draft.parameters():
        value.data.normal_(generator=noise)
    return draft.requires_grad_(False)


def config(**changes: Any) -> DraftConfig:
    known = {"target": "t", "target_fingerprint": "f", "model_type": "llama", "hidden_size": HIDDEN}
    return DraftConfig(**{**known, **changes})


def elastic() -> Elastic:
    branches = (BranchConfig("pool", 5), BranchConfig("conv", 3), BranchConfig("resampler", 10))
    made = Elastic(ElasticConfig("select", branches, num_queries=4), HIDDEN, HIDDEN)
    made.reset(torch.Generator().manual_seed(2))
    return made


def load(folder: Path, text_config: Any = None) -> OwnDraft:
    return load_draft(folder, text_config or target(), attn_implementation="sdpa")


@pytest.mark.parametrize("layout", [{}, {"bias": True}, {"input_norm": False}])
@pytest.mark.parametrize("vocabulary", [None, torch.tensor([5, 0, 39])])
def test_what_is_saved_is_loaded(
    layout: dict[str, bool], vocabulary: torch.Tensor | None, tmp_path: Path
) -> None:
    draft = drawn(**layout)
    save_draft(tmp_path / "deep" / "draft", draft, config(**layout), vocabulary)
    found = load(tmp_path / "deep" / "draft")
    assert found.config == config(**layout)
    ids = None if found.vocabulary is None else found.vocabulary.tolist()
    assert ids == (None if vocabulary is None else vocabulary.tolist())
    assert found.compressor is None
    halved = {name: value.half().float() for name, value in draft.state_dict().items()}
    torch.testing.assert_close(dict(found.module.state_dict()), halved, rtol=0, atol=0)


def test_a_compressor_travels_with_its_draft(tmp_path: Path) -> None:
    compressor = elastic()
    save_draft(tmp_path, drawn(), config(), None, compressor)
    found = load(tmp_path).compressor
    assert found is not None
    assert found.config == compressor.config
    halved = {name: value.half().float() for name, value in compressor.state_dict().items()}
    torch.testing.assert_close(dict(found.state_dict()), halved, rtol=0, atol=0)


def test_a_compressor_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_draft(tmp_path, drawn(), config(), None, elastic())
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["compressor"]["num_queries"] = 8
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match=r"branches.resampler.queries \[4, 32\] instead of \[8, 32\]"):
        load(tmp_path)
    raw["compressor"]["branches"][1]["ratio"] = 9
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelLoadError, match="conv must be at least 1 and at most 5"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"compressor": None}))
    with pytest.raises(ModelLoadError, match=r"unknown .*compressor\.branches"):
        load(tmp_path)


def test_a_half_precision_target_still_gives_a_float32_draft(tmp_path: Path) -> None:
    save_draft(tmp_path, drawn(), config(), None)
    loaded = load(tmp_path, target(dtype="bfloat16")).module
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    row = torch.ones(1, 3, HIDDEN)
    assert loaded(row, row, torch.arange(3)[None]).dtype == torch.float32


def test_every_difference_of_the_weights_is_named(tmp_path: Path) -> None:
    save_draft(tmp_path, drawn(), config(), None)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["state_norm.weight"]
    tensors |= {"fc.weight": torch.ones(HIDDEN, HIDDEN), "odd": torch.ones(1)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    for part in (
        "missing ['state_norm.weight']",
        "unknown ['odd']",
        "fc.weight [32, 32] instead of [32, 64]",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (target(hidden_size=64), "llama target of width 32, this target is a llama of width 64"),
        (Qwen2Config(hidden_size=HIDDEN), "llama target of width 32, this target is a qwen2 of width 32"),
    ],
)
def test_a_draft_for_another_target_says_which(other: Any, said: str, tmp_path: Path) -> None:
    save_draft(tmp_path, drawn(), config(), None)
    with pytest.raises(ModelLoadError, match=said):
        load(tmp_path, other)


@pytest.mark.parametrize("ids", [[0, 40], [-1, 3], []])
def test_a_vocabulary_that_names_no_token_is_refused(ids: list[int], tmp_path: Path) -> None:
    save_draft(tmp_path, drawn(), config(), torch.tensor(ids, dtype=torch.int64))
    with pytest.raises(ModelLoadError, match=r"token ids in 0\.\.39"):
        load(tmp_path)


@pytest.mark.parametrize("change", [{"version": 2}, {"format": "other"}, {"hidden_size": "wide"}, None])
def test_a_folder_that_is_no_draft_is_refused(change: dict[str, Any] | None, tmp_path: Path) -> None:
    if change is not None:
        save_draft(tmp_path, drawn(), config(), None)
        raw = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(ModelLoadError, match="readable draft"):
        load(tmp_path)


def test_the_fingerprint_follows_the_weights_and_nothing_else(tmp_path: Path) -> None:
    weights = {"a": torch.arange(300_000, dtype=torch.float32)}
    save_file(weights, tmp_path / "model.safetensors")
    before = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert fingerprint(tmp_path) == before
    assert draft_config(target(), "t", tmp_path, bias=True) == config(target_fingerprint=before, bias=True)
    save_file({"a": weights["a"] + 1}, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path) != before
    save_file({"b": weights["a"]}, tmp_path / "model.safetensors")
    assert fingerprint(tmp_path) != before
    with pytest.raises(FileNotFoundError, match="safetensors"):
        fingerprint(tmp_path / "nowhere")
