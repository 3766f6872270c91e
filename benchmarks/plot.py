"""Draws every figure that has an aim as a bar beside it: one SVG, no plotting library."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

WIDTH, ROW, LABEL, BAR = 760, 34, 330, 300


def figures(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [figure for result in document["results"].values() for figure in result.get("figures", [])]


def write_svg(document: dict[str, Any], path: Path) -> None:
    """Bars are scaled so that the aim of each (the dashed line) stands at the same place."""
    found = figures(document)
    height = ROW * (len(found) + 2)
    rows = "".join(_row(figure, index) for index, figure in enumerate(found))
    line = f'<line x1="{LABEL + BAR / 2}" x2="{LABEL + BAR / 2}" y1="{ROW}" y2="{height - ROW}" {_DASHED}/>'
    where = f"{document['machine']['cpu']}, {document['settings']['threads']} threads"
    note = document["warning"] or "dashed: the aim"
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20">{escape(where)}</text>{rows}{line}'
        f'<text x="8" y="{height - 10}" fill="#666">{escape(note)}</text></svg>\n'
    )


_DASHED = 'stroke="#333" stroke-dasharray="4 3"'


def _row(figure: dict[str, Any], index: int) -> str:
    top = ROW * (index + 1)
    width = min(BAR, BAR / 2 * figure["value"] / figure["aim"])
    colour = "#2a7d4f" if figure["met"] else "#b5482f"
    sign = "≥" if figure["better"] == "higher" else "≤"
    text = f"{figure['value']:.3g} ({sign} {figure['aim']:g})"
    return (
        f'<text x="8" y="{top + 18}">{escape(figure["name"])}</text>'
        f'<rect x="{LABEL}" y="{top + 5}" width="{width:.1f}" height="18" fill="{colour}"/>'
        f'<text x="{LABEL + BAR + 10}" y="{top + 18}">{escape(text)}</text>'
    )
