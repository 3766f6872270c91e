"""What forwards cost is measured once for whatever computes them, and again where it no longer fits."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.draft.base import Drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.ngram_drafter import NgramDrafter
from engine.host.cache_folder import cache_folder
from engine.kernels.onednn import pack_linears
from engine.kv_cache import KVCache
from engine.sizing import choose_sizes
from engine.speculation import measure
from engine.speculation.budget import SpeculationBudget
from engine.speculation.measure import measured_budget
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.engine.own_kernels import own_kernels
from tests.golden.reference import load_golden
from tests.golden.speculating import eagle


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
        self.drafter: Drafter = NgramDrafter(frozenset())
        if eagle_draft:
            self.drafter = eagle(load_golden(model), EagleDrafter)(self.config, self.target, sizes)

    def budget(self) -> SpeculationBudget:
        return measured_budget(self.config, self.target, self.cache, self.drafter)


def costing(seconds: Callable[[int], float]) -> Callable[..., Callable[[int], None]]:
    """In place of ``measure.forward_of``: a forward that takes so long."""
    return lambda *_: lambda rows: time.sleep(seconds(rows))


def test_a_table_is_kept_at_the_machines_speed_of_now_and_measured_anew_where_it_no_longer_fits(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = Start(tiny("llama"))
    monkeypatch.setattr(measure, "forward_of", costing(lambda rows: 0.010 + 0.001 * rows))
    first = start.budget().target.points
    with caplog.at_level(logging.INFO):
        monkeypatch.setattr(measure, "forward_of", costing(lambda rows: 3 * (0.010 + 0.001 * rows)))
        slower = start.budget().target.points
        assert "measured the cost" not in caplog.text
        assert all(2 < slower[rows] / first[rows] < 4.5 for rows in first)
        monkeypatch.setattr(measure, "forward_of", costing(lambda rows: 0.010 + 0.010 * rows))
        start.budget()
        assert "measured the cost" in caplog.text


def test_what_was_learned_is_not_kept(tiny: BuildCheckpoint) -> None:
    start = Start(tiny("llama"), eagle_draft=True)
    budget = start.budget()
    kept = (cache_folder() / "costs.json").read_bytes()
    for _ in range(300):
        budget.observe_forward(8, 1.5 * budget.target.seconds(8))
    del budget
    gc.collect()
    assert (cache_folder() / "costs.json").read_bytes() == kept


def test_other_kernels_and_other_products_cost_something_else(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(measure, "forward_of", costing(lambda rows: 0.005 + 0.001 * rows))
    for module in ("engine.kernels.onednn", "engine.target"):
        monkeypatch.setattr(f"{module}.packing_pays", lambda linears: False)

    def measures(start: Start) -> bool:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            start.budget()
        return "measured the cost" in caplog.text

    start = Start(tiny("llama"))
    assert measures(start)
    assert not measures(start)
    plain = Start(tiny("llama"), cpu_kernels=False)
    assert measures(plain)
    assert not measures(plain)
    monkeypatch.setattr("engine.kernels.onednn.packing_pays", lambda linears: True)
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
