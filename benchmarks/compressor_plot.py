"""What ``python -m benchmarks.compressors`` measured: a curve for each branch, and a table in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chart import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST = 0.005  # where text only stands on a scale without a zero


def write_svg(result: dict[str, Any], path: Path) -> None:
    """Acceptance length, as a share of that with whole pictures, against visual tokens kept: a panel for each
    number of pictures. Bars are 95 % intervals.
    """
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, len(result["tables"]), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, result["tables"], strict=True):
        _panel(axes, table["ways"])
        axes.set_title(f"pictures in a request: {table['pictures']} ({table['dialogues']} dialogues)")
    panels[0].set_ylabel("acceptance length, whole pictures = 1")
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
        # Side by side: branches keep the same number of tokens, and their bars would hide each other.
        places = [max(SMALLEST, point["visual_tokens_kept"]) * 1.03 ** (number - 4) for point in points]
        style = "o-" if len(points) > 1 else "D"
        axes.errorbar(places, heights, (low, high), fmt=style, markersize=4, elinewidth=0.8, label=name)
    axes.axhline(1, color="#999", linewidth=0.8)
    axes.axhline(0.97, color="#999", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="share of visual tokens that the draft keeps (dashed: 3 % less)")


def markdown(result: dict[str, Any]) -> str:
    """A row for each way, the numbers of pictures side by side."""
    tables = result["tables"]
    titles = [f"{table['pictures']} picture{'s' * (table['pictures'] > 1)}" for table in tables]
    lines = [
        "| way | tokens kept | " + " | ".join(f"{title}: length | to whole (95 %)" for title in titles)
        + " | draft KV of a picture | FLOPs: compressing, drafting | parameters |",
        "|---|---|" + "---|---|" * len(tables) + "---|---|---|",
    ]  # fmt: skip
    for name, first in tables[0]["ways"].items():
        cells = [name, f"{first['visual_tokens_kept']:.2f}"]
        for table in tables:
            way = table["ways"][name]
            low, high = way["to_whole_pictures_95"]
            cells += [
                f"{way['acceptance_length']:.3f}",
                f"{way['to_whole_pictures']:.3f} ({low:.3f}–{high:.3f})",
            ]
        lines.append("| " + " | ".join([*cells, *_costs(first)]) + " |")
    return "\n".join(lines)


def _costs(way: dict[str, Any]) -> list[str]:
    if "draft_kv_bytes" not in way:
        chosen = ", ".join(f"{name} {count}" for name, count in way["branches"].items())
        return [f"by choice: {chosen}", "", ""]
    flops = f"{way['compressor_flops'] / 1e6:.1f} M, {way['draft_prefill_flops'] / 1e6:.0f} M"
    return [f"{way['draft_kv_bytes'] / 1024:.1f} KiB", flops, f"{way['parameters']:,}"]
