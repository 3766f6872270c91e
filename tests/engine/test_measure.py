"""What forwards cost is measured once for whatever computes them, and what was learned is there next time."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import measure
from engine.budget import SpeculationBudget
from engine.cache_folder import cache_folder
from engine.config import EngineConfig
from engine.drafter import Drafter
from engine.eagle_drafter import EagleDrafter
from engine.kv_cache import KVCache
from engine.measure import measured_budget
from engine.ngram import NgramDrafter
from engine.packing import pack_linears
from engine.sizing import choose_sizes
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.engine.own_kernels import own_kernels
from tests.golden.reference import load_golden
from tests.golden.speculating import eagle

FACTOR = 1.5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own_kernels()
    kernels = cache_folder() / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "specvlm").mkdir()
    (tmp_path / "specvlm" / "kernels").symlink_to(kernels)
    return tmp_path


class Start:
    """One start of an engine, as far as costs go."""

    def __init__(self, model: Path, *, eagle_draft: bool = False, cpu_kernels: bool = True) -> None:
        self.config = EngineConfig(
            model=str(model), device="cpu", cpu_kernels=cpu_kernels, kv_cache_memory=1 << 20, max_num_seqs=2
        )
        self.target = TargetModel.load(self.config)
        sizes = choose_sizes(self.config, self.target.kv_shape, 512, self.target.device)
        self.cache = KVCache(self.target.kv_shape, sizes.num_pages, self.config.page_size, self.target.device)
        self.drafter: Drafter = NgramDrafter()
        if eagle_draft:
            self.drafter = eagle(load_golden(model), EagleDrafter)(self.config, self.target, sizes)

    def budget(self) -> SpeculationBudget:
        return measured_budget(self.config, self.target, self.cache, self.drafter)


def test_what_was_learned_is_kept_when_the_engine_ends(tiny: BuildCheckpoint) -> None:
    start = Start(tiny("llama"), eagle_draft=True)
    budget = start.budget()
    assert budget.draft.level is not None
    measured = budget.target.points
    for _ in range(300):
        budget.observe_forward(8, FACTOR * measured[8])
        budget.draft.extend.observe(8, 0.5)
    wanted = budget.target.points, budget.draft.extend.points, budget.draft.level.points
    assert wanted[0][8] > 1.2 * measured[8]
    assert wanted[1] != wanted[2]
    del budget
    gc.collect()
    again = start.budget()
    assert again.draft.level is not None
    assert (again.target.points, again.draft.extend.points, again.draft.level.points) == wanted


def test_other_kernels_and_other_products_cost_something_else(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("engine.packing", "engine.target"):
        monkeypatch.setattr(f"{module}.packing_pays", lambda linears: False)

    def measures(start: Start) -> bool:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            start.budget()
        return "measured what" in caplog.text

    start = Start(tiny("llama"))
    assert measures(start)
    assert not measures(start)
    plain = Start(tiny("llama"), cpu_kernels=False)
    assert measures(plain)
    assert not measures(plain)
    monkeypatch.setattr("engine.packing.packing_pays", lambda linears: True)
    assert pack_linears(plain.target.adapter.text_model) > 0
    assert measures(plain), "packed products cost something else"
    monkeypatch.setattr(start.target.kernels, "build", "another compiler's")
    assert measures(start)
    monkeypatch.setattr(measure, "version", lambda name: "another")
    assert measures(start)


def test_a_disturbed_measurement_makes_no_number_of_rows_look_free(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disturbed(*_: object) -> Callable[[int], None]:
        return lambda rows: time.sleep(0.02 if rows in (1, 3) else 0.001 * rows)

    monkeypatch.setattr(measure, "forward_of", disturbed)
    found = Start(tiny("llama")).budget().target.points
    assert list(found.values()) == sorted(found.values())
    assert found[1] == found[2]
