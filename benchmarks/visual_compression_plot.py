"""Plots the results of ``python -m benchmarks.visual_compression``: answers and first tokens by ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.chart import new_figure, save


def write_svg(document: dict[str, Any], path: Path) -> None:
    """Plot a curve for each method; error bars are 95 % intervals of the difference from whole pictures.

    If other processes were busy, the title says so.
    """
    whole, *others = document["ways"].values()
    figure = new_figure(9, 3.8)
    answers, times = figure.subplots(1, 2)
    for number, method in enumerate(dict.fromkeys(way["method"] for way in others)):
        points = [way for way in others if way["method"] == method]
        # Shifted a little, or the bars would hide each other.
        ratios = [way["ratio"] * 1.04**number for way in points]
        for axes, key, shift in (
            (answers, "score_change", whole["score"]),
            (times, "first_token_to_whole", 0.0),
        ):
            middle = [way[key] + shift for way in points]
            low = [way[key] - way[f"{key}_95"][0] for way in points]
            high = [way[f"{key}_95"][1] - way[key] for way in points]
            axes.errorbar(ratios, middle, (low, high), fmt="o-", markersize=4, elinewidth=0.8, label=method)
    answers.axhline(whole["score"], color="#999", linewidth=0.8)
    answers.set(ylim=(0, 1), ylabel="correct answers (line: whole images)")
    times.axhline(1, color="#999", linewidth=0.8)
    times.set(ylim=(0, None), ylabel="time to first token, whole images = 1")
    for axes in (answers, times):
        axes.set(xscale="log", xlabel="compression ratio of visual tokens")
        ratios = sorted({way["ratio"] for way in others})
        axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
        axes.minorticks_off()
    times.legend()
    title = f"{document['samples']} held-out samples, {document['machine']['cpu']}"
    figure.suptitle(f"{title}\n{document['warning']}" if document["warning"] else title, fontsize=9)
    save(figure, path)
