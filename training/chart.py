"""Plots drawn with matplotlib, which is optional: reproducible SVG files that keep text as text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import TrainingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

_SVG = {"svg.fonttype": "none", "svg.hashsalt": "specvlm"}


def check_plotting() -> None:
    """Raise ``TrainingError`` if matplotlib is missing; call it before long work that ends with a plot."""
    if find_spec("matplotlib") is None:
        raise TrainingError("plots need matplotlib: pip install -e '.[plot]'")


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; ``width`` and ``height`` are in inches."""
    check_plotting()
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    with rc_context(_SVG):
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_curve(path: Path, points: Sequence[tuple[float, float]], *, x: str, y: str) -> None:
    """Plot at least two points, joined in order. Without matplotlib, log a warning instead."""
    try:
        check_plotting()
    except TrainingError as error:
        log.warning("%s not drawn: %s", path.name, error)
        return
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o", color="#2a7d4f")
    axes.set(xlabel=x, ylabel=y, xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    save(figure, path)
