"""Throughput and latencies against concurrency, a line a side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2a7d4f", "#b5482f")

Value = Callable[[dict[str, Any]], float | None]


def _latency(name: str, percentile: str) -> Value:
    return lambda side: 1e3 * side[name][percentile] if side[name] else None


PANELS: tuple[tuple[str, tuple[Value, ...]], ...] = (
    ("output tokens a second", (lambda side: side["tokens_per_second"],)),
    ("time to first token, ms", (_latency("ttft", "p50"), _latency("ttft", "p99"))),
    ("time per output token, ms", (_latency("tpot", "p50"), _latency("tpot", "p99"))),
)


def write_svg(document: dict[str, Any], path: Path) -> None:
    save(draw(document), path)


def draw(document: dict[str, Any]) -> Figure:
    """A row of panels for each data set and temperature; a 99th percentile is dashed beside its median."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for point in document["points"]:
        rows.setdefault(f"{point['data']}, temperature {point['temperature']:g}", []).append(point)
    figure = new_figure(4 * len(PANELS), 0.6 + 3 * len(rows))
    figure.suptitle(f"client on {document['machine']['cpu']}; dashed: 99th percentile")
    labels = list(document["points"][0]["sides"])
    grid = figure.subplots(len(rows), len(PANELS), squeeze=False)
    for (title, points), line in zip(rows.items(), grid, strict=True):
        for (name, values), axes in zip(PANELS, line, strict=True):
            _panel(axes, sorted(points, key=lambda p: p["concurrency"]), labels, values)
            axes.set(ylabel=name, xlabel="requests at a time", xlim=(0, None), ylim=(0, None))
        line[0].set_title(title, loc="left")
    grid[0, 0].legend()
    return figure


def _panel(
    axes: Axes, points: Sequence[dict[str, Any]], labels: Sequence[str], values: Sequence[Value]
) -> None:
    """Every concurrency that was measured has its tick."""
    for label, colour in zip(labels, COLOURS, strict=False):
        for value, style, name in zip(values, ("-", "--"), (label, None), strict=False):
            heights = [value(point["sides"][label]) for point in points]
            axes.plot(
                [point["concurrency"] for point in points],
                [math.nan if height is None else height for height in heights],
                style,
                marker="o",
                color=colour,
                label=name,
            )
    axes.set_xticks(sorted({point["concurrency"] for point in points}))
