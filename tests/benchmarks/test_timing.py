"""The arithmetic of the measurements: a wrong ratio would be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import batch, machine, plot, timing
from benchmarks.workload import Trace, first_difference, picture


def test_pairs_alternate_and_ratios_cancel_drift() -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, speed: float) -> timing.Measure:
        def measure(index: int) -> float:
            calls.append((name, index))
            return speed * (1 + index)  # a machine that gets faster

        return measure

    result = timing.interleaved(run("a", 6.0), run("b", 2.0), repeats=3, warmup=1)
    assert calls[2:] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert all(index >= 3 for _, index in calls[:2])
    assert result["ratio"]["raw"] == [3.0, 3.0, 3.0]
    assert result["a"] == {"min": 6.0, "median": 12.0, "max": 18.0, "raw": [6.0, 12.0, 18.0]}


@pytest.mark.parametrize(
    ("value", "at_least", "met"), [(1.4, True, True), (1.2, True, False), (0.1, False, True)]
)
def test_figures_are_judged_in_the_right_direction(value: float, at_least: bool, met: bool) -> None:
    assert timing.judged("x", value, 1.3, at_least=at_least)["met"] is met


def test_first_token_is_no_part_of_the_decode_rate() -> None:
    trace = Trace(start=10.0, token_ids=[1, 2, 3], token_times=[15.0, 16.0, 17.0])
    assert trace.first_token == 5.0
    assert trace.decode_rate == 1.0


def test_joint_rate_counts_only_while_every_stream_decodes() -> None:
    early = Trace(0.0, token_times=[1.0, 2.0, 3.0, 4.0])
    late = Trace(0.0, token_times=[2.5, 3.5, 4.5, 5.5])
    # From 2.5 to 4.0: tokens at 3.0 and 4.0 of one, 3.5 of the other.
    assert batch.joint_rate([early, late]) == pytest.approx(3 / 1.5)


def test_first_difference_names_the_index() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1


def test_pictures_of_two_seeds_differ() -> None:
    assert picture(1).tobytes() == picture(1).tobytes() != picture(2).tobytes()


def test_a_busy_machine_is_told() -> None:
    quiet, busy = {"cpu_share": 0.01}, {"cpu_share": 0.6}
    assert machine.busy_warning(quiet, quiet) is None
    assert "60%" in (machine.busy_warning(quiet, busy) or "")


def test_the_record_of_a_machine_is_json_with_versions() -> None:
    record = json.loads(json.dumps(machine.machine()))
    assert record["packages"]["torch"]
    assert record["cores"] >= 1


def test_plot_draws_one_bar_a_figure(tmp_path: Path) -> None:
    results: dict[str, Any] = {
        "one": {"figures": [timing.judged("a < b", 2.6, 1.3, at_least=True)]},
        "two": {"error": "exit code 1"},
    }
    document = {
        "machine": {"cpu": "some & cpu"},
        "settings": {"threads": 2},
        "warning": None,
        "results": results,
    }
    [bar] = plot.draw(document).axes[0].patches
    assert bar.get_width() == 2  # times the aim
    plot.write_svg(document, tmp_path / "x.svg")
    texts = "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    assert all(text in texts for text in ("a < b", "2.6 (≥ 1.3)", "some & cpu"))
