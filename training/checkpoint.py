"""Checkpoints: a run's state in one file, replaced atomically, from which the run resumes exactly."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingError


@dataclass(slots=True)
class Progress:
    """Steps done, tokens seen in them (without padding) and seconds spent, over all sessions of the run."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    done: Progress,
    made_by: dict[str, Any],
) -> None:
    """Write a checkpoint; if the process is killed meanwhile, the old file stays.

    ``modules``: the trained modules by name. ``made_by``: the settings and the data's key, as plain values.
    """
    partial = path.with_suffix(".partial")
    state: dict[str, Any] = {name: module.state_dict() for name, module in modules.items()}
    state |= {"optimizer": optimizer.state_dict(), "made_by": made_by}
    state["done"] = {"step": done.step, "tokens": done.tokens, "seconds": done.seconds}
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    made_by: dict[str, Any],
) -> Progress:
    """Load the modules and the optimiser. Raises ``TrainingError`` if the run had other settings."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    before = state["made_by"]
    names = sorted(n for n in before.keys() | made_by.keys() if before.get(n) != made_by.get(n))
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r}, is {made_by.get(name)!r}" for name in names)
        raise TrainingError(
            f"{path} belongs to a run with other settings: {changes}. Use the same settings again, choose "
            "another --out, or start over with --no-resume"
        )
    for name, module in modules.items():
        module.load_state_dict(state[name])
    optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["done"])
