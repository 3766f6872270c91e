"""Plots every result that has a goal as a bar relative to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for result in document["results"].values() for figure in result.get("figures", [])]


def write_svg(document: dict[str, Any], path: Path) -> None:
    save(draw(document), path)


def draw(document: dict[str, Any]) -> Figure:
    """Draw a bar for each result, as a share of its goal (the dashed line)."""
    found = figures(document)
    figure = new_figure(8, 1 + 0.35 * len(found))
    axes = figure.subplots()
    colours = ["#2a7d4f" if one["met"] else "#b5482f" for one in found]
    bars = axes.barh(
        [one["name"] for one in found], [one["value"] / one["aim"] for one in found], color=colours
    )
    signs = {"higher": "≥", "lower": "≤"}
    texts = [f"{one['value']:.3g} ({signs[one['better']]} {one['aim']:g})" for one in found]
    axes.bar_label(bars, texts, padding=4)
    axes.axvline(1, color="#333", linestyle="--")
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xticks([])
    where = f"{document['machine']['cpu']}, {document['settings']['threads']} threads"
    axes.set(title=where, xlabel=document["warning"] or "dashed line: goal")
    return figure
