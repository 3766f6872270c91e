"""The picture in the README is of the figures beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results_plot import main

DOCS = Path(__file__).parents[2] / "docs"


def test_picture_of_the_readme_shows_the_committed_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(str(DOCS / "results.json"), str(tmp_path / "results.svg"))
    document = json.loads((DOCS / "results.json").read_text())
    assert document["warning"] is None  # nothing else ran
    for picture in (DOCS / "results.svg", tmp_path / "results.svg"):
        text = picture.read_text()
        for temperature in ("temperature 0", "temperature 1"):
            for kind, measured in document["results"]["speculation"][temperature].items():
                assert f">{kind}<" in text
                assert f">{measured['speed_up']:.2f}<" in text
