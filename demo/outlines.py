"""Outlines of the kinds of shapes, as polygons of about unit radius. Knows nothing of scenes."""

import math

from demo.canvas import Canvas


def outline(
    canvas: Canvas, kind: str, x: float, y: float, r: float, fill: tuple[int, int, int], turn: float
) -> None:
    """Draw a filled shape of ``kind`` with radius ``r`` pixels at (x, y), rotated by ``turn`` radians."""
    if kind == "circle":
        canvas.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif kind == "ring":
        canvas.draw.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, round(r * 0.36)))
    else:
        canvas.draw.polygon(
            [
                (
                    x + r * px * math.cos(turn) - r * py * math.sin(turn),
                    y + r * px * math.sin(turn) + r * py * math.cos(turn),
                )
                for px, py in _POINTS[kind]
            ],
            fill,
        )


def _heart() -> list[tuple[float, float]]:
    steps = [i * math.tau / 28 for i in range(28)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in steps
    ]


_ARM = 0.34
_POINTS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)],
    "diamond": [(0.0, -1.05), (0.75, 0.0), (0.0, 1.05), (-0.75, 0.0)],
    "star": [
        (
            math.sin(i * math.pi / 5) * (0.42 if i % 2 else 1.05),
            -math.cos(i * math.pi / 5) * (0.42 if i % 2 else 1.05),
        )
        for i in range(10)
    ],
    "heart": _heart(),
    "cross": [
        (-_ARM, -1),
        (_ARM, -1),
        (_ARM, -_ARM),
        (1, -_ARM),
        (1, _ARM),
        (_ARM, _ARM),
        (_ARM, 1),
        (-_ARM, 1),
        (-_ARM, _ARM),
        (-1, _ARM),
        (-1, -_ARM),
        (-_ARM, -_ARM),
    ],
}
