"""``python -m benchmarks.results_plot results.json results.svg``: plot the speed-up by speculation.

The input is the output of ``python -m benchmarks --only decode speculation``. Plain decoding of the same
questions in the same engine is 1; the line of ``model.generate`` is taken from the ``decode`` measurement.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"temperature 0": "#2a7d4f", "temperature 1": "#8fc3a5"}


def draw(document: dict[str, Any]) -> Figure:
    speculation, decode = (document["results"][name] for name in ("speculation", "decode"))
    figure = new_figure(8, 3.4)
    axes = figure.subplots()
    height = 0.8 / len(COLOURS)
    for number, (temperature, colour) in enumerate(COLOURS.items()):
        kinds = speculation[temperature]
        places = [place + number * height for place in range(len(kinds))]
        bars = axes.barh(
            places,
            [kind["speed_up"] for kind in kinds.values()],
            height,
            color=colour,
            label=temperature,
        )
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
        axes.set_yticks([place - height / 2 for place in places], list(kinds))
    generate = 1 / decode["ratio"]["median"]
    axes.axvline(1, color="#333", linewidth=1, label="plain decoding here")
    axes.axvline(generate, color="#333", linewidth=1, linestyle="--", label="model.generate")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    figure.legend(loc="outside right center", fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    machine = document["machine"]
    axes.set(
        title=f"Tokens a second, one stream: demo model, {machine['cores']} cores, {machine['cpu']}",
        xlabel=document["warning"] or "plain decoding = 1",
    )
    return figure


def main(source: str, target: str) -> None:
    save(draw(json.loads(Path(source).read_text())), Path(target))


if __name__ == "__main__":
    main(*sys.argv[1:])
