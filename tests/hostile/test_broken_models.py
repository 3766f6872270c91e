"""Damaged checkpoints are refused with a word about what is wrong, never served and never tried again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import ModelLoadError
from tests.conftest import BuildCheckpoint
from tests.imports import ROOT

WEIGHTS = "model.safetensors"
SOME_WEIGHT = "model.layers.1.mlp.up_proj.weight"
Damage = Callable[[Path], object]


@pytest.fixture
def checkpoint(tiny: BuildCheckpoint, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(tiny("llama"), tmp_path / "model"))


def change_bytes(change: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def change_weights(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def change_config(**values: object) -> Damage:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


@pytest.mark.parametrize("cpu_kernels", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_bytes(lambda data: data[: len(data) // 2]), "weights of .*not fully covered"),
        (change_bytes(lambda data: b"\xff" * 8 + data[8:]), "weights of .*header"),
        (change_bytes(lambda _: b""), "weights of .*header"),
        (change_bytes(lambda _: b"version https://git-lfs.github.com/spec/v1\n"), "weights of .*header"),
        (lambda folder: (folder / WEIGHTS).unlink(), "weights of .*model.safetensors"),
        (change_weights(lambda weights: weights.pop(SOME_WEIGHT)), f"{SOME_WEIGHT} is missing"),
        (
            change_weights(lambda weights: weights.update({SOME_WEIGHT: weights[SOME_WEIGHT][1:].clone()})),
            rf"{SOME_WEIGHT} has shape \(95, 64\) and not \(96, 64\)",
        ),
        (change_config(num_hidden_layers=60), "is missing.* and .* more"),
        (change_config(num_hidden_layers="two"), "readable config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "readable config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "readable config.json"),
    ],
)
def test_damage_is_named(checkpoint: Path, damage: Damage, message: str, cpu_kernels: bool) -> None:
    damage(checkpoint)
    config = EngineConfig(model=str(checkpoint), device="cpu", cpu_kernels=cpu_kernels)
    with pytest.raises(ModelLoadError, match=message) as caught:
        EngineCore.load(config)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_bytes(lambda data: data[: len(data) // 2]), "not fully covered"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
    ],
)
def test_the_server_ends_at_once(checkpoint: Path, damage: Damage, message: str) -> None:
    damage(checkpoint)
    command = [sys.executable, "-m", "server", "serve", "--model", str(checkpoint), "--port", "0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert message in result.stderr
    assert "restarting in" not in result.stderr
    assert "Traceback" not in result.stderr
