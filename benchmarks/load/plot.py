"""Plots all metrics against concurrency, with one line per side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load.errors import BenchError
from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2a7d4f", "#b5482f")
DPI = 150

Value = Callable[[dict[str, Any]], float | None]
Panel = tuple[str, tuple[Value, ...]]


def _latencies(name: str) -> tuple[Value, Value]:
    def percentile(which: str) -> Value:
        return lambda side: 1e3 * side[name][which] if side[name] else None

    return percentile("p50"), percentile("p99")


def _length(side: dict[str, Any]) -> float | None:
    return (side["speculation"] or {}).get("mean_acceptance_length")


PANELS: tuple[Panel, ...] = (
    ("output tokens per second", (lambda side: side["tokens_per_second"],)),
    ("time to first token, ms", _latencies("ttft")),
    ("between chunks (ITL), ms", _latencies("itl")),
    ("time per output token, ms", _latencies("tpot")),
    ("whole answer, ms", _latencies("e2e")),
)


def panels(document: dict[str, Any]) -> list[Panel]:
    """Return the panels to draw; goodput needs stated limits, tokens per round a server that reports them."""
    found = list(PANELS)
    if limits := document["settings"]["goodput"]:
        stated = ", ".join(limit.replace(":", " ≤ ") for limit in limits)
        found.append(
            (f"answers per second with\n{stated} ms", (lambda side: side["goodput"]["requests_per_second"],))
        )
    sides = (side for point in document["points"] for side in point["sides"].values())
    if any(_length(side) is not None for side in sides):
        found.append(("tokens per round", (_length,)))
    return found


def write_plot(document: dict[str, Any], path: Path) -> None:
    """Write an SVG or PNG file, by the suffix of ``path``. Raises ``BenchError``."""
    try:
        if path.suffix.lower() == ".png":
            draw(document).savefig(path, format="png", dpi=DPI)
        else:
            save(draw(document), path)
    except OSError as error:
        raise BenchError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def draw(document: dict[str, Any]) -> Figure:
    """Draw a group of panels for each data set and temperature.

    A single group has two rows of panels; several groups have one row each, so that the same metrics are in
    one column. 99th percentiles are dashed, next to the medians.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for point in document["points"]:
        groups.setdefault(f"{point['data']}, temperature {point['temperature']:g}", []).append(point)
    shown, labels = panels(document), list(document["points"][0]["sides"])
    columns = len(shown) if len(groups) > 1 else math.ceil(len(shown) / 2)
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(3.4 * columns, 0.9 + len(groups) * (0.3 + 2.6 * lines))
    figure.suptitle(_title(document))
    parts = figure.subfigures(len(groups), 1, squeeze=False)[:, 0]
    for (title, points), part in zip(groups.items(), parts, strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize="medium")
        for number, (name, values) in enumerate(shown, 1):
            axes = part.add_subplot(lines, columns, number)
            _panel(axes, sorted(points, key=lambda p: p["concurrency"]), labels, values)
            axes.set(ylabel=name, xlabel="concurrent requests")
    handles, names = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _title(document: dict[str, Any]) -> str:
    models = list(dict.fromkeys(side["model"] for side in document["sides"]))
    if len(models) > 1:
        models = [f"{side['label']}: {side['model']}" for side in document["sides"]]
    cut = "; the run was cut short" if document["incomplete"] else ""
    return f"{', '.join(models)}\nclient on {document['machine']['cpu']}; dashed: 99th percentile{cut}"


def _panel(
    axes: Axes, points: Sequence[dict[str, Any]], labels: Sequence[str], values: Sequence[Value]
) -> None:
    """Draw a panel with a tick at every measured concurrency and axes that start at zero."""
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
    axes.update_datalim([(0, 0)])
    axes.autoscale_view()
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.set_xticks(sorted({point["concurrency"] for point in points}))
