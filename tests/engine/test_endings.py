"""Which tokens end an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig
from engine.core import EngineCore
from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden, run_core
from tests.golden.speculating import asking, plain_core, target_of


def test_what_a_tokenizer_calls_the_end_ends_an_answer_too(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "fine-tuned")
    own = read_eos_token_ids(EngineConfig(model=str(folder)))
    assert own
    for name in ("config.json", "generation_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"eos_token_id": 3}))
    assert read_eos_token_ids(EngineConfig(model=str(folder))) == own | {3}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert read_eos_token_ids(EngineConfig(model=str(folder))) == {3}


def test_an_end_token_that_the_model_cannot_write_breaks_no_request(
    tiny: BuildCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that the tokenizer has and the model has no row for."""
    golden = load_golden(tiny("llama"))
    target, ends = target_of(golden.folder)
    odd = {target.vocab_size, -1}
    config = EngineConfig(model=str(golden.folder), device="cpu")
    prompt = golden.prompt("Hello")
    with caplog.at_level("WARNING"):
        cores = [EngineCore(config, target, ends | odd), plain_core(golden)]
    answers = [
        run_core(core, [(0, asking("a", prompt, max_tokens=8, min_tokens=6))]).token_ids["a"]
        for core in cores
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) >= 6
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "engine.checkpoint"]
    assert str(sorted(odd)) in warning
