"""Bar, line and pie charts with a few labelled values: drawing them and asking about them.

Knows nothing of tokens.
"""

import math
from dataclasses import dataclass, replace
from random import Random

from demo.canvas import Canvas, backdrop, tint
from demo.scene import Box, Check, Element, Question, Scene, pick
from demo.shapes import article
from demo.wordings import wording
from demo.words import CATEGORIES, COLORS, DAYS, MONTHS

_INKS = tuple(color for color in COLORS if color not in ("white", "black"))
_ASPECTS = ((1.0, 1.0), (1.0, 1.0), (1.2, 1.0), (4 / 3, 1.0))
_PARTS = {"bar": "bar", "line": "point", "pie": "slice"}


@dataclass(slots=True, frozen=True)
class Chart:
    """The data of a chart. ``kind`` is bar, line or pie; ``values`` are percentages for a pie."""

    kind: str
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[str, ...]

    @property
    def part(self) -> str:
        return _PARTS[self.kind]


def draw(rng: Random, kind: str = "") -> Scene:
    """Draw a chart of ``kind`` (any if empty) with the values written on it."""
    kind = kind or pick(rng, ("bar", "bar", "line", "pie"))
    number = rng.randint(3, 5) if kind != "pie" else rng.randint(2, 4)
    labels = _labels(rng, number, ordered=kind == "line")
    values = _shares(rng, number) if kind == "pie" else _heights(rng, number)
    several = kind == "pie" or (kind == "bar" and rng.random() < 0.5)
    colors = tuple(rng.sample(_INKS, number)) if several else (pick(rng, _INKS),) * number
    chart = Chart(kind, labels, values, colors)
    background = "white" if rng.random() < 0.7 else pick(rng, ("cream", "light gray", "light blue"))
    canvas = Canvas(rng, backdrop(background, rng), _ASPECTS)
    painter = {"bar": _bars, "line": _line, "pie": _pie}[kind]
    return Scene(kind, canvas.image, painter(canvas, chart, rng), background, {"shapes": number}, chart)


def _labels(rng: Random, number: int, ordered: bool) -> tuple[str, ...]:
    names = rng.choice((MONTHS, DAYS)) if ordered else CATEGORIES[rng.randrange(len(CATEGORIES))]
    if names is MONTHS or names is DAYS:
        start = rng.randrange(len(names) - number + 1)
        return names[start : start + number]
    return tuple(rng.sample([name for name in names if len(name) <= 5], number))


def _heights(rng: Random, number: int) -> tuple[int, ...]:
    top = rng.choice((10, 20, 50, 100))
    step = max(1, top // 10)
    levels = rng.sample(range(1, 11), number)
    return tuple(min(top, level * step + (rng.randrange(step) if step > 1 else 0)) for level in levels)


def _shares(rng: Random, number: int) -> tuple[int, ...]:
    while True:
        cuts = sorted(rng.sample(range(2, 19), number - 1))
        parts = [b - a for a, b in zip([0, *cuts], [*cuts, 20], strict=True)]
        if len(set(parts)) == number and min(parts) >= 2:
            return tuple(5 * part for part in parts)


def _frame(canvas: Canvas, rng: Random) -> tuple[float, float, float, float]:
    left, bottom = canvas.width * rng.uniform(0.05, 0.09), canvas.height * rng.uniform(0.84, 0.88)
    right, top = canvas.width * 0.97, canvas.height * rng.uniform(0.13, 0.18)
    if rng.random() < 0.4:
        for i in range(1, 5):
            y = bottom - (bottom - top) * i / 4
            canvas.draw.line((left, y, right, y), fill=(200, 200, 200))
    canvas.draw.line((left, top, left, bottom, right, bottom), fill=(40, 40, 40), width=2)
    return left, top, right, bottom


def _size(canvas: Canvas, chart: Chart, room: float) -> int:
    longest = max(chart.labels, key=len)
    return canvas.fit(longest, room, int(canvas.unit * 0.085))


def _bars(canvas: Canvas, chart: Chart, rng: Random) -> list[Element]:
    left, top, right, bottom = _frame(canvas, rng)
    step = (right - left) / len(chart.labels)
    width = step * rng.uniform(0.5, 0.75)
    size = _size(canvas, chart, step * 0.92)
    found: list[Element] = []
    for i, (label, value, color) in enumerate(zip(chart.labels, chart.values, chart.colors, strict=True)):
        x = left + step * (i + 0.5)
        y = bottom - (bottom - top) * value / max(chart.values)
        canvas.draw.rectangle((x - width / 2, y, x + width / 2, bottom), fill=tint(color, rng))
        name = canvas.text((x, bottom + (canvas.height - bottom) / 2), label, size, (20, 20, 20))
        number = canvas.text((x, y - size * 0.7), str(value), size, (20, 20, 20))
        about = Element(
            "bar",
            (canvas.box(x - width / 2, y, x + width / 2, bottom),),
            color,
            text=label,
            value=str(value),
            count=i + 1,
        )
        found += _entry(about, "bar", name, number)
    return found


def _entry(about: Element, noun: str, name: Box, number: Box) -> list[Element]:
    """Return the elements of a mark: itself, its printed name and its number, all with the same labels."""
    return [
        replace(about, caption=f"{about.color} {noun}"),
        replace(about, cls="word", boxes=(name,), caption=about.text, ordered=True, layer=1),
        replace(about, cls="number", boxes=(number,), caption=about.value, ordered=True, layer=1),
    ]


def _line(canvas: Canvas, chart: Chart, rng: Random) -> list[Element]:
    left, top, right, bottom = _frame(canvas, rng)
    step = (right - left) / len(chart.labels)
    size = _size(canvas, chart, step * 0.92)
    ink = tint(chart.colors[0], rng)
    low = bottom - (bottom - top) * 0.05
    spots = [
        (left + step * (i + 0.5), low - (low - top - size * 0.6) * value / max(chart.values))
        for i, value in enumerate(chart.values)
    ]
    canvas.draw.line(spots, fill=ink, width=max(3, canvas.unit // 70), joint="curve")
    found: list[Element] = []
    dot = max(4, canvas.unit // 45)
    for i, ((x, y), label, value) in enumerate(zip(spots, chart.labels, chart.values, strict=True)):
        canvas.draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=ink)
        name = canvas.text((x, bottom + (canvas.height - bottom) / 2), label, size, (20, 20, 20))
        number = canvas.text((x, y - dot - size * 0.65), str(value), size, (20, 20, 20))
        about = Element(
            "point",
            (canvas.box(x - dot, y - dot, x + dot, y + dot),),
            chart.colors[0],
            text=label,
            value=str(value),
            count=i + 1,
        )
        found += _entry(about, "line", name, number)
    return found


def _pie(canvas: Canvas, chart: Chart, rng: Random) -> list[Element]:
    radius = canvas.unit * rng.uniform(0.28, 0.32)
    x, y = canvas.width * 0.5, canvas.height * 0.5
    size = int(canvas.unit * 0.08)
    angle = rng.uniform(-90, 90)
    found: list[Element] = []
    for i, (label, value, color) in enumerate(zip(chart.labels, chart.values, chart.colors, strict=True)):
        end = angle + 3.6 * value
        canvas.draw.pieslice(
            (x - radius, y - radius, x + radius, y + radius), angle, end, fill=tint(color, rng)
        )
        middle = math.radians((angle + end) / 2)
        across, down = math.cos(middle), math.sin(middle)
        tx, ty = x + across * radius * 1.32, y + down * (radius * 1.2 + size * 0.6)
        reach = canvas.width * 0.17
        at = (max(reach, min(canvas.width - reach, tx)), max(size * 1.1, min(canvas.height - size * 1.1, ty)))
        name = canvas.text(
            (at[0], at[1] - size * 0.5), label, canvas.fit(label, reach * 1.7, size), (20, 20, 20)
        )
        number = canvas.text((at[0], at[1] + size * 0.5), f"{value}%", size, (20, 20, 20))
        dots = tuple(
            _dot(canvas, x, y, radius * far, math.radians(angle + 3.6 * value * part), radius)
            for far in (0.45, 0.75)
            for part in (0.25, 0.5, 0.75)
        )
        about = Element("slice", dots, color, text=label, value=str(value), count=i + 1)
        found += _entry(about, "slice", name, number)
        angle = end
    return found


def _dot(
    canvas: Canvas, x: float, y: float, far: float, angle: float, radius: float
) -> tuple[float, float, float, float]:
    px, py, half = x + math.cos(angle) * far, y + math.sin(angle) * far, radius * 0.08
    return canvas.box(px - half, py - half, px + half, py + half)


def ask(scene: Scene, rng: Random, split: str) -> list[Question]:
    """Return all kinds of questions that this chart allows."""
    chart: Chart = scene.data
    part, unit = chart.part, "%" if chart.kind == "pie" else ""
    pairs = list(zip(chart.labels, chart.values, chart.colors, strict=True))
    task, labels = chart.kind, chart.labels
    found = []
    for label, value, _ in rng.sample(pairs, 2):
        found.append(
            Question(
                task,
                wording("chart_value", rng, split, label=label),
                f"The value of {label} is {value}{unit}.",
                Check("number", (str(value),)),
            )
        )
    best, least = max(pairs, key=lambda p: p[1]), min(pairs, key=lambda p: p[1])
    found.append(
        Question(
            task,
            wording("chart_max", rng, split, part=part),
            f"The highest is {best[0]} with {best[1]}{unit}.",
            Check("choice", (best[0],), labels),
        )
    )
    found.append(
        Question(
            task,
            wording("chart_min", rng, split, part=part),
            f"The lowest is {least[0]} with {least[1]}{unit}.",
            Check("choice", (least[0],), labels),
        )
    )
    found.append(
        Question(
            task,
            wording("chart_count", rng, split, part=part),
            f"There are {_NUMBER[len(pairs)]} {part}s.",
            Check("number", (str(len(pairs)),)),
        )
    )
    a, b = rng.sample(pairs, 2)
    yes = "Yes" if a[1] > b[1] else "No"
    found.append(
        Question(
            task,
            wording("chart_compare", rng, split, a=a[0], b=b[0]),
            f"{yes}, {a[0]} is {a[1]}{unit} and {b[0]} is {b[1]}{unit}.",
            Check("yesno", (yes,)),
        )
    )
    found.append(_kind_or_color(chart, pairs, rng, split))
    found.append(_describe(scene, pairs, rng, split))
    return found


_NUMBER = {2: "two", 3: "three", 4: "four", 5: "five"}


def _kind_or_color(chart: Chart, pairs: list[tuple[str, int, str]], rng: Random, split: str) -> Question:
    if chart.kind != "line" and rng.random() < 0.6:
        label, _, color = pairs[rng.randrange(len(pairs))]
        return Question(
            chart.kind,
            wording("chart_color", rng, split, label=label, part=chart.part),
            f"{label} is {color}.",
            Check("choice", (color,), tuple(COLORS)),
        )
    first, last = chart.values[0], chart.values[-1]
    if chart.kind == "line" and rng.random() < 0.5 and abs(first - last) > 0.25 * max(chart.values):
        way = "up" if last > first else "down"
        return Question(
            "line",
            wording("trend", rng, split),
            f"The line goes {way}, from {first} to {last}.",
            Check("choice", (way,), ("up", "down")),
        )
    return Question(
        chart.kind,
        wording("chart_kind", rng, split),
        f"This is a {chart.kind} chart.",
        Check("choice", (chart.kind,), ("bar", "line", "pie")),
    )


def _describe(scene: Scene, pairs: list[tuple[str, int, str]], rng: Random, split: str) -> Question:
    chart: Chart = scene.data
    unit = "%" if chart.kind == "pie" else ""
    lines = [f"The picture shows {article(chart.kind)} chart with {_NUMBER[len(pairs)]} {chart.part}s."]
    several = len(set(chart.colors)) > 1
    if not several:
        lines.append(f"The {'line is' if chart.kind == 'line' else 'bars are'} {chart.colors[0]}.")
    lines += [
        f"{label} is {color} with {value}{unit}." if several else f"{label} is {value}{unit}."
        for label, value, color in pairs
    ]
    lines.append(f"The highest is {max(pairs, key=lambda p: p[1])[0]}.")
    return Question(
        "describe",
        wording("describe", rng, split),
        " ".join(lines),
        Check("facts", tuple(f"{label}|{value}" for label, value, _ in pairs)),
    )
