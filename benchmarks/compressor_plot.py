"""Presents the results of ``python -m benchmarks.compressors``: a plot and a Markdown table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST = 0.005  # where "text only" is drawn, as a logarithmic scale has no zero


def write_svg(result: dict[str, Any], path: Path) -> None:
    """Plot acceptance length, relative to whole pictures, against the share of visual tokens kept.

    There is a panel for each number of pictures. Error bars are 95 % intervals.
    """
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, len(result["tables"]), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, result["tables"], strict=True):
        _panel(axes, table["ways"])
        axes.set_title(f"images per request: {table['pictures']} ({table['dialogues']} dialogues)")
    panels[0].set_ylabel("acceptance length (1: whole images; dashed: 3 % less)")
    figure.supxlabel("share of visual tokens that the draft keeps", fontsize="medium")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    save(figure, path)


def _panel(axes: Axes, ways: dict[str, dict[str, Any]]) -> None:
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, way in ways.items():
        curves.setdefault(name.rpartition("-")[0] or name, []).append(way)
    for number, (name, points) in enumerate(curves.items()):
        points.sort(key=lambda point: point["visual_tokens_kept"])
        heights = [point["to_whole_pictures"] for point in points]
        low = [
            height - point["to_whole_pictures_95"][0] for height, point in zip(heights, points, strict=True)
        ]
        high = [
            point["to_whole_pictures_95"][1] - height for height, point in zip(heights, points, strict=True)
        ]
        # Shifted a little: branches keep the same number of tokens, and their bars would hide each other.
        places = [max(SMALLEST, point["visual_tokens_kept"]) * 1.03 ** (number - 4) for point in points]
        style = "o-" if len(points) > 1 else "D"
        axes.errorbar(
            *(places, heights, (low, high)),
            fmt=style,
            color=f"C{number}" if number < 10 else ("black", "#888")[number - 10],
            markersize=4,
            elinewidth=0.8,
            label=name.partition("(")[0].strip() if style == "D" else name,
        )
    axes.axhline(1, color="#999", linewidth=0.8)
    axes.axhline(0.97, color="#999", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")


def markdown(result: dict[str, Any]) -> str:
    """Format a table with a row for each way, followed by the gates' choices for each kind of question."""
    tables = result["tables"]
    heads = ["way"]
    for table in tables:
        title = f"{table['pictures']} image{'s' * (table['pictures'] > 1)}"
        heads += [f"{title}: tokens kept", "acceptance length", "relative to whole (95 % interval)"]
        heads += ["draft KV", "draft prefill, ms", "FLOPs: compressor, draft prefill"]
    heads.append("parameters")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, first in tables[0]["ways"].items():
        cells = [name]
        for table in tables:
            cells += _cells(table["ways"][name])
        cells.append(f"{first['parameters']:,}" if "parameters" in first else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(line for table in tables for line in _choices(table))])


def _cells(way: dict[str, Any]) -> list[str]:
    """Return the cells of one way and number of pictures."""
    cells = [f"{way['visual_tokens_kept']:.2f}", f"{way['acceptance_length']:.3f}"]
    cells.append(_ratio(way, "to_whole_pictures"))
    cells.append(f"{way['draft_kv_bytes'] / 1024:.1f} KiB" if "draft_kv_bytes" in way else "")
    cells.append(f"{way['draft_prefill_ms']:.2f}")
    flops = [
        f"{way[name] / 1e6:.1f} M" for name in ("compressor_flops", "draft_prefill_flops") if name in way
    ]
    return [*cells, ", ".join(flops)]


def _ratio(way: dict[str, Any], name: str) -> str:
    low, high = way[f"{name}_95"]
    return f"{way[name]:.3f} ({low:.3f}–{high:.3f})"


def _choices(table: dict[str, Any]) -> list[str]:
    """Describe the choices of each gate of a table, and how it compares with the best fixed way."""
    lines = []
    for name, way in table["ways"].items():
        if "branches" not in way:
            continue
        told = [
            f"{kind}: {', '.join(f'{tag} {count}' for tag, count in own['branches'].items())}"
            for kind, own in way["by_kind"].items()
        ]
        for key, ratio in (("branch", "to_best_fixed"), ("in_table", "to_best_fixed_in_table")):
            if ratio in way:
                told.append(f"relative to {table['best_fixed'][key]}, the best fixed: {_ratio(way, ratio)}")
        pictures = f"{table['pictures']} image{'s' * (table['pictures'] > 1)}"
        lines.append(f"- {name}, {pictures} per request: {'; '.join(told)}")
    return lines
