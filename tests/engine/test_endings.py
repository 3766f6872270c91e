"""Which tokens end an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig
from tests.conftest import BuildCheckpoint


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
