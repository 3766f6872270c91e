"""Cost tables follow what was measured, learn slowly, and survive a bad file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.speculation.costs import CostTable, DraftCosts, load_tables, save_tables

# Eager transformers on two cores, milliseconds: two rows are dearer than four, 24 than 32.
BUMPY = {1: 59, 2: 99, 3: 120, 4: 98, 6: 109, 8: 102, 12: 118, 16: 152, 24: 180, 32: 156, 48: 191, 64: 233}


def table(points: dict[int, float] | None = None) -> CostTable:
    return CostTable(points or {rows: ms / 1000 for rows, ms in BUMPY.items()})


def test_follows_the_bumps() -> None:
    costs = table()
    assert all(costs.seconds(rows) == pytest.approx(ms / 1000) for rows, ms in BUMPY.items())
    assert costs.seconds(3) > costs.seconds(4)
    assert costs.seconds(20) == pytest.approx((0.152 + 0.180) / 2)


def test_goes_on_with_the_last_slope_but_never_down() -> None:
    assert table().seconds(80) == pytest.approx(0.233 + (0.233 - 0.191))
    assert table({1: 1.0, 2: 3.0, 4: 2.0}).seconds(100) == pytest.approx(2.0)
    assert table({8: 2.0}).seconds(100) == table({8: 2.0}).seconds(1) == 2.0


points = st.dictionaries(st.integers(1, 500), st.floats(1e-6, 10), min_size=1, max_size=8)


@given(points, st.lists(st.tuples(st.integers(1, 900), st.floats(1e-9, 1e3)), max_size=20))
def test_stays_sane_whatever_is_observed(start: dict[int, float], seen: list[tuple[int, float]]) -> None:
    costs = CostTable(start)
    for count, (rows, seconds) in enumerate(seen, start=1):
        before = costs.seconds(rows)
        costs.observe(rows, seconds)
        after = costs.seconds(rows)
        # Towards what was seen, and one look moves it by half at first, later by a tenth at most.
        assert after == pytest.approx(before, rel=0.02 + max(0.09, 1 / (1 + count)))
        assert (after - before) * (seconds - before) >= -1e-12 * before
    many = np.arange(1, 1000)
    assert np.allclose(costs.curve(many), [costs.seconds(int(rows)) for rows in many])
    assert (costs.curve(many) > 0).all()
    again = CostTable.from_points(costs.to_points())
    assert again.points == costs.points


def test_learns_a_cost_that_was_measured_wrong() -> None:
    costs = table()
    for _ in range(400):
        costs.observe(8, 0.150)
        costs.observe(1, 0.059)
    assert costs.seconds(8) == pytest.approx(0.150, rel=0.05)
    assert costs.seconds(1) == pytest.approx(0.059, rel=0.05)


def test_a_machine_that_slows_down_is_slower_at_every_size() -> None:
    costs = table()
    for _ in range(300):
        costs.observe(1, 0.059 * 1.5)
    assert costs.seconds(1) == pytest.approx(0.059 * 1.5, rel=0.02)
    assert costs.seconds(32) > 0.156 * 1.15  # never seen since, yet not as if the machine were fast


def test_a_moment_of_trouble_is_no_new_cost() -> None:
    costs = table()
    for step in range(64):
        costs.observe(4, 30.0 if step % 32 == 0 else 0.098)
    assert costs.seconds(4) == pytest.approx(0.098, rel=0.05)


@pytest.mark.parametrize("bad", [{}, {0: 1.0}, {1: 0.0}, {1: -1.0}, {1: float("nan")}, {1: float("inf")}])
def test_a_table_of_nonsense_is_refused(bad: dict[int, float]) -> None:
    with pytest.raises(ValueError, match=r"rows|seconds"):
        CostTable(bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_an_observation_of_nonsense_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        table().observe(1, bad)


def test_draft_costs_are_one_pass_and_the_levels_after_it() -> None:
    costs = DraftCosts(CostTable({1: 0.010, 11: 0.020}), CostTable({1: 0.003, 101: 0.013}))
    assert costs.seconds(1, 6, 51) == pytest.approx(0.015)
    assert costs.seconds(4, 6, 51) == pytest.approx(0.015 + 3 * 0.008)
    for _ in range(500):
        costs.observe(4, 6, 51, 0.060)
    assert costs.seconds(4, 6, 51) == pytest.approx(0.060, rel=0.02)
    look_up = DraftCosts(CostTable({1: 0.0001}))
    assert look_up.seconds(9, 1, 90) == look_up.seconds(1, 1, 1)


def test_tables_of_different_keys_live_in_one_private_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "costs.json"
    assert load_tables(path) == {}
    save_tables(path, {"a": table(), "b": table({1: 1.0})})
    save_tables(path, {"b": table({1: 2.0})})
    kept = load_tables(path)
    assert kept["a"].points == table().points
    assert kept["b"].points == {1: 2.0}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["costs.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"format": "\xff"}',
        b'{"tables": {}}',
        b'{"format": "another", "tables": {}}',
        b'{"format": "specvlm-costs-1", "tables": {"a": {"rows": [2, 1], "seconds": [1, 1]}}}',
        b'{"format": "specvlm-costs-1", "tables": {"a": {"rows": [1], "seconds": [0]}}}',
        b'{"format": "specvlm-costs-1", "tables": {"a": {"rows": [1], "seconds": [1e999]}}}',
        b'{"format": "specvlm-costs-1", "tables": {"a": {"rows": [1], "seconds": [1, 2]}}}',
    ],
)
def test_a_bad_file_is_ignored_with_a_word_and_then_replaced(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    assert load_tables(path) == {}
    assert "costs.json" in caplog.text
    save_tables(path, {"a": table()})
    assert load_tables(path)["a"].points == table().points


def test_another_users_file_and_a_folder_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "costs.json"
    save_tables(path, {"a": table()})
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert load_tables(path) == {}
    assert "another user" in caplog.text
    assert load_tables(tmp_path) == {}


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="costs"):
        save_tables(path, {"a": table()})
    assert os.listdir(tmp_path) == ["costs.json"]
