"""The benchmark of lossy compression: turns of a dialogue, its figures, its plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.visual_compression import Tally, chat_of, described, interval
from benchmarks.visual_compression_plot import write_svg


def test_pictures_go_where_they_belong() -> None:
    question = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}],
    }
    said = {"role": "assistant", "content": "Two."}
    first, second = chat_of([question, said], ["a", "b"])
    assert [part.get("image") for part in first["content"]] == ["a", "b", None]
    assert second == {"role": "assistant", "content": [{"type": "text", "text": "Two."}]}


def test_figures_are_of_pairs() -> None:
    """What is always a fifth quicker is so with certainty, however much samples differ."""
    whole = Tally([1.0, 0.0, 1.0, 1.0], [1.0, 20.0, 3.0, 4.0], [100, 200, 100, 100])
    lossy = Tally([1.0, 0.0, 0.0, 1.0], [0.8, 16.0, 2.4, 3.2], [25, 50, 25, 25])
    told = described(lossy, whole)
    assert (told["score"], told["score_change"], told["visual_tokens_kept"]) == (0.5, -0.25, 0.25)
    assert told["first_token_to_whole"] == 0.8
    assert told["first_token_to_whole_95"] == [0.8, 0.8]
    low, high = told["score_change_95"]
    assert low < -0.25 < high <= 0
    assert told["groups"] == {
        "shapes, colours, positions": {"score": 0.3333, "count": 3},
        "counting": {"score": 1.0, "count": 1},
    }


def test_intervals_hold_the_middle() -> None:
    values = np.random.default_rng(1).normal(5.0, 1.0, 200)
    low, high = interval(values, np.mean)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.2)


def test_the_plot_says_what_disturbed_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tally = Tally([1.0, 0.0], [1.0, 2.0], [4, 4])
    ways = {
        f"{method}-{ratio}": {"method": method, "ratio": ratio} | described(tally, tally)
        for method, ratio in (("none", 1.0), ("pool", 2.0), ("pool", 4.0), ("prune", 2.0))
    }
    told = {"ways": ways, "samples": 2, "machine": {"cpu": "A CPU"}, "warning": "others were busy"}
    write_svg(told, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert all(text in drawn for text in ("A CPU", "others were busy", ">pool<", ">prune<"))
