"""The training loop: resuming gives what an uninterrupted run gives, and the recipe makes sense."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from demo import recipe, train
from demo.recipe import RECIPE, Stage

_STAGE = Stage("tiny", "eyes", steps=6, batch=1, seed=5, matrix_lr=0.1, lr=0.1, warmup=2)


class _Numbers(Dataset[torch.Tensor]):
    def __getitem__(self, step: int) -> torch.Tensor:
        return torch.full((3,), float(step))


class _Learner:
    """A line through numbers, with noise from torch's generator as the real learners have."""

    def __init__(self, stop_at: int | None = None):
        torch.manual_seed(0)
        self.line = nn.Linear(3, 1)
        self.stop_at = stop_at

    def batches(self) -> Dataset[Any]:
        return _Numbers()

    def step(self, batch: torch.Tensor, step: int) -> dict[str, float]:
        if step == self.stop_at:
            raise KeyboardInterrupt
        loss = (self.line(batch + torch.randn(3)) - 1).pow(2).sum()
        loss.backward()
        return {"loss": loss.item()}

    def optimizers(self) -> list[torch.optim.Optimizer]:
        adam = torch.optim.AdamW(self.line.parameters(), lr=0.1)
        adam.param_groups[0]["peak"] = 0.1
        return [adam]

    def trained(self) -> list[nn.Parameter]:
        return list(self.line.parameters())

    def state(self) -> dict[str, Any]:
        return self.line.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.line.load_state_dict(state)


@pytest.fixture(autouse=True)
def one_tiny_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "RECIPE", (_STAGE,))
    monkeypatch.setattr(train, "find_stage", lambda name: _STAGE)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(train, "ahead", lambda data, start, stop: iter([data[i] for i in range(start, stop)]))


def _run(out: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> dict[str, Any]:
    monkeypatch.setattr(train, "learner_for", lambda *_: _Learner(stop_at))
    path = train.train(out, "tiny", language=out)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def test_resuming_gives_what_an_uninterrupted_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(tmp_path / "whole", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", monkeypatch, stop_at=3)
    resumed = _run(tmp_path / "cut", monkeypatch)
    assert resumed["step"] == whole["step"] == _STAGE.steps
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=0, atol=0)


def test_a_finished_stage_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(tmp_path, monkeypatch)
    again = _run(tmp_path, monkeypatch, stop_at=0)
    torch.testing.assert_close(again["model"], first["model"], rtol=0, atol=0)


def test_the_rate_warms_up_stays_and_falls() -> None:
    long = replace(_STAGE, steps=1000, warmup=10, final=0.1)
    assert train.schedule(0, long) == pytest.approx(0.1)
    assert train.schedule(500, long) == 1.0
    assert train.schedule(999, long) == pytest.approx(0.1, abs=0.01)
    assert train.schedule(999, replace(long, final=1.0)) == 1.0


def test_the_recipe_has_its_own_seeds_and_known_kinds() -> None:
    assert len({one.seed for one in RECIPE}) == len(RECIPE)
    assert {one.kind for one in RECIPE} == {"eyes", "joint"}
    assert recipe.stage(RECIPE[0].name) is RECIPE[0]
