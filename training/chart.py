"""A curve as SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 640, 360, 56


def draw_curve(path: Path, points: Sequence[tuple[float, float]], *, x: str, y: str) -> None:
    """Two points or more, joined in order; axes from zero for ``x``, from the lowest value for ``y``."""
    right = max(p[0] for p in points) or 1.0
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)

    def place(px: float, py: float) -> str:
        across = MARGIN + px / right * (WIDTH - 2 * MARGIN)
        up = HEIGHT - MARGIN - (py - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        return f"{across:.1f},{up:.1f}"

    line = " ".join(place(*p) for p in points)
    dots = "".join(
        f'<circle cx="{place(*p).split(",")[0]}" cy="{place(*p).split(",")[1]}" r="3"/>' for p in points
    )
    bottom, end = HEIGHT - MARGIN, WIDTH - MARGIN
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{end}" fill="none" stroke="#333"/>'
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{high:.2f}</text>'
        f'<text x="{MARGIN - 6}" y="{bottom + 4}" text-anchor="end">{low:.2f}</text>'
        f'<text x="{end}" y="{bottom + 18}" text-anchor="end">{right:,.0f}</text>'
        f'<text x="{MARGIN}" y="{bottom + 18}">0</text>'
        f'<text x="{WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">{escape(x)}</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 16}">{escape(y)}</text>'
        f'<polyline points="{line}" fill="none" stroke="#2a7d4f" stroke-width="2"/>'
        f'<g fill="#2a7d4f">{dots}</g></svg>\n'
    )
