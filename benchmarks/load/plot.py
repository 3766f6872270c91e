"""Throughput and latencies against concurrency, a line a side: one SVG, no plotting library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, MARGIN, TOP = 340, 240, 52, 28
COLOURS = ("#2a7d4f", "#b5482f")
DASHED = 'stroke-dasharray="4 3"'

Value = Callable[[dict[str, Any]], float | None]


@dataclass(slots=True)
class Line:
    colour: str
    dashed: bool
    points: list[tuple[int, float]] = field(default_factory=list)


def _latency(name: str, percentile: str) -> Value:
    return lambda side: 1e3 * side[name][percentile] if side[name] else None


PANELS: tuple[tuple[str, tuple[Value, ...]], ...] = (
    ("output tokens a second", (lambda side: side["tokens_per_second"],)),
    ("time to first token, ms", (_latency("ttft", "p50"), _latency("ttft", "p99"))),
    ("time per output token, ms", (_latency("tpot", "p50"), _latency("tpot", "p99"))),
)


def write_svg(document: dict[str, Any], path: Path) -> None:
    """A row of panels for each data set and temperature; a 99th percentile is dashed beside its median."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for point in document["points"]:
        rows.setdefault(f"{point['data']}, temperature {point['temperature']:g}", []).append(point)
    labels = list(document["points"][0]["sides"])
    drawn = [_legend(labels, document["machine"]["cpu"])]
    for number, (title, points) in enumerate(rows.items()):
        top = TOP + number * (HEIGHT + TOP)
        drawn.append(f'<text x="8" y="{top + 16}" font-weight="bold">{escape(title)}</text>')
        for column, (name, values) in enumerate(PANELS):
            panel = _panel(name, _lines(points, labels, values))
            drawn.append(f'<g transform="translate({column * WIDTH},{top + TOP})">{panel}</g>')
    height = TOP + len(rows) * (HEIGHT + TOP)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(PANELS) * WIDTH}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(drawn)}</svg>\n"
    )


def _legend(labels: Sequence[str], where: str) -> str:
    names = "".join(
        f'<tspan fill="{colour}">{escape(label)}</tspan>   '
        for label, colour in zip(labels, COLOURS, strict=False)
    )
    note = escape(f"   dashed: 99th percentile   client on {where}")
    return f'<text x="8" y="18" xml:space="preserve">{names}<tspan fill="#666">{note}</tspan></text>'


def _lines(points: Sequence[dict[str, Any]], labels: Sequence[str], values: Sequence[Value]) -> list[Line]:
    lines = []
    for label, colour in zip(labels, COLOURS, strict=False):
        for dashed, value in enumerate(values):
            line = Line(colour, bool(dashed))
            for point in sorted(points, key=lambda p: p["concurrency"]):
                if (found := value(point["sides"][label])) is not None:
                    line.points.append((point["concurrency"], found))
            lines.append(line)
    return lines


def _panel(name: str, lines: Sequence[Line]) -> str:
    """Both axes start at zero; every concurrency that was measured has its tick."""
    right = max((x for line in lines for x, _ in line.points), default=1)
    high = max((y for line in lines for _, y in line.points), default=0.0) or 1.0
    bottom, end = HEIGHT - MARGIN, WIDTH - MARGIN / 2

    def across(x: float) -> float:
        return MARGIN + x / right * (end - MARGIN)

    def up(y: float) -> float:
        return bottom - y / high * (bottom - TOP)

    drawn = [
        f'<text x="{MARGIN}" y="{TOP - 10}">{escape(name)}</text>',
        f'<path d="M{MARGIN} {TOP}V{bottom}H{end}" fill="none" stroke="#333"/>',
        f'<text x="{MARGIN - 6}" y="{TOP + 4}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{MARGIN - 6}" y="{bottom + 4}" text-anchor="end">0</text>',
        f'<text x="{(MARGIN + end) / 2}" y="{bottom + 32}" text-anchor="middle">requests at a time</text>',
    ]
    drawn += [
        f'<text x="{across(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x}</text>'
        for x in sorted({x for line in lines for x, _ in line.points})
    ]
    for line in lines:
        style = f'stroke="{line.colour}"' + (f" {DASHED}" if line.dashed else "")
        placed = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
        drawn.append(f'<polyline points="{placed}" fill="none" stroke-width="2" {style}/>')
        drawn += [
            f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{line.colour}"/>'
            for x, y in line.points
        ]
    return "".join(drawn)
