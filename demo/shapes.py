"""Scenes of coloured shapes: drawing them and asking about colour, kind, position, number and relations.

Shapes are in distinct cells of a 3 x 3 grid, so that position words are unambiguous. Knows nothing of tokens.
"""

from dataclasses import dataclass
from random import Random

from demo.canvas import Canvas, backdrop, tint
from demo.outlines import outline
from demo.scene import Check, Element, Question, Scene, pick
from demo.wordings import wording
from demo.words import BACKGROUNDS, CLASHES, COLORS, KINDS, NUMBERS, POSITIONS

_COLORS = tuple(COLORS)


@dataclass(slots=True, frozen=True)
class Shape:
    """One shape, and the cell that it is in (row * 3 + column)."""

    color: str
    kind: str
    size: str
    cell: int

    @property
    def thing(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def pos(self) -> str:
        return POSITIONS[self.cell]


def plural(noun: str, count: int) -> str:
    """ "one circle", "three circles", "no crosses"."""
    many = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{NUMBERS[count] if count else 'no'} {noun if count == 1 else many}"


def article(text: str) -> str:
    """Put "a" or "an" before ``text``."""
    return ("an " if text[0] in "aeiou" else "a ") + text


def draw(rng: Random, at_most: int = 8, at_least: int = 1) -> Scene:
    """Draw ``at_least`` to ``at_most`` shapes, often of only a few kinds or colours, to be counted."""
    background = "white" if rng.random() < 0.4 else pick(rng, tuple(BACKGROUNDS))
    canvas = Canvas(rng, backdrop(background, rng))
    number = rng.randint(at_least, at_most)
    colors = [color for color in _COLORS if color not in CLASHES[background]]
    kinds: list[str] = list(KINDS)
    if number > 2 and rng.random() < 0.55:
        kinds = rng.sample(kinds, rng.randint(1, 3))
    if number > 2 and rng.random() < 0.35:
        colors = rng.sample(colors, rng.randint(1, 3))
    cells = rng.sample(range(9), number)
    shapes = sorted(
        (Shape(pick(rng, colors), pick(rng, kinds), pick(rng, ("small", "large")), cell) for cell in cells),
        key=lambda shape: shape.cell,
    )
    elements = [_paint(canvas, shape, shapes, rng) for shape in shapes]
    counts = {kind: sum(s.kind == kind for s in shapes) for kind in KINDS}
    counts |= {color: sum(s.color == color for s in shapes) for color in _COLORS}
    counts["shapes"] = number
    return Scene("shapes", canvas.image, elements, background, counts, shapes)


def _paint(canvas: Canvas, shape: Shape, shapes: list[Shape], rng: Random) -> Element:
    row, column = divmod(shape.cell, 3)
    x = canvas.width * (column + 0.5 + rng.uniform(-0.08, 0.08)) / 3
    y = canvas.height * (row + 0.5 + rng.uniform(-0.08, 0.08)) / 3
    radius = canvas.unit * (rng.uniform(0.125, 0.15) if shape.size == "large" else rng.uniform(0.06, 0.075))
    outline(canvas, shape.kind, x, y, radius, tint(shape.color, rng), rng.uniform(-0.15, 0.15))
    return Element(
        shape.kind,
        (canvas.box(x - radius, y - radius, x + radius, y + radius),),
        shape.color,
        shape.size,
        count=sum(other.kind == shape.kind for other in shapes),
        caption=f"{shape.size} {shape.color} {shape.kind}",
        where=shape.pos,
    )


def ask(scene: Scene, rng: Random, split: str) -> list[Question]:
    """Return all kinds of questions that this scene allows, in a fixed order."""
    shapes: list[Shape] = scene.data
    return [
        *_about_one(shapes, rng, split),
        *_counting(scene, rng, split),
        *_relations(shapes, rng, split),
        _describe(scene, rng, split),
    ]


def _about_one(shapes: list[Shape], rng: Random, split: str) -> list[Question]:
    found: list[Question] = []
    shape = shapes[rng.randrange(len(shapes))]
    color, place = Check("choice", (shape.color,), _COLORS), Check("choice", (shape.pos,), POSITIONS)
    kind = Check("choice", (shape.kind,), KINDS)
    found.append(
        Question(
            "color",
            wording("color_at", rng, split, pos=shape.pos),
            f"The {shape.kind} in the {shape.pos} is {shape.color}.",
            color,
        )
    )
    found.append(
        Question(
            "shape",
            wording("kind_at", rng, split, pos=shape.pos),
            f"There is {article(shape.size)} {shape.thing} in the {shape.pos}.",
            kind,
        )
    )
    for shape in rng.sample(shapes, len(shapes)):
        if sum(s.kind == shape.kind for s in shapes) == 1:
            color = Check("choice", (shape.color,), _COLORS)
            found.append(
                Question(
                    "color",
                    wording("color_of", rng, split, kind=shape.kind),
                    f"The {shape.kind} is {shape.color}.",
                    color,
                )
            )
            named = pick(rng, _COLORS) if rng.random() < 0.5 else shape.color
            answer = (
                f"Yes, the {shape.kind} is {named}."
                if named == shape.color
                else f"No, the {shape.kind} is {shape.color}."
            )
            found.append(
                Question(
                    "yesno",
                    wording("is_color", rng, split, kind=shape.kind, color=named),
                    answer,
                    Check("yesno", (answer.split(",")[0],)),
                )
            )
            break
    for shape in rng.sample(shapes, len(shapes)):
        if sum(s.color == shape.color for s in shapes) == 1:
            found.append(
                Question(
                    "shape",
                    wording("kind_of_color", rng, split, color=shape.color),
                    f"The {shape.kind} is {shape.color}.",
                    Check("choice", (shape.kind,), KINDS),
                )
            )
            break
    for shape in rng.sample(shapes, len(shapes)):
        if sum(s.thing == shape.thing for s in shapes) == 1:
            place = Check("choice", (shape.pos,), POSITIONS)
            found.append(
                Question(
                    "position",
                    wording("position_of", rng, split, thing=shape.thing),
                    f"The {shape.thing} is in the {shape.pos}.",
                    place,
                )
            )
            break
    found.append(_exists(shapes, rng, split))
    return found


def _exists(shapes: list[Shape], rng: Random, split: str) -> Question:
    shape = shapes[rng.randrange(len(shapes))]
    if rng.random() < 0.5:
        here = next(s for s in shapes if s.thing == shape.thing)
        return Question(
            "yesno",
            wording("exists", rng, split, thing=shape.thing),
            f"Yes, there is {article(shape.thing)} in the {here.pos}.",
            Check("yesno", ("Yes",)),
        )
    color, kind = shape.color, shape.kind
    while any(s.thing == f"{color} {kind}" for s in shapes):
        color, kind = (pick(rng, _COLORS), kind) if rng.random() < 0.5 else (color, pick(rng, KINDS))
    return Question(
        "yesno",
        wording("exists", rng, split, thing=f"{color} {kind}"),
        f"No, there is no {color} {kind} in the picture.",
        Check("yesno", ("No",)),
    )


def _counting(scene: Scene, rng: Random, split: str) -> list[Question]:
    shapes: list[Shape] = scene.data
    total = len(shapes)
    verb = "is" if total == 1 else "are"
    found = [
        Question(
            "count",
            wording("count_all", rng, split),
            f"There {verb} {plural('shape', total)}.",
            Check("number", (str(total),)),
        )
    ]
    kind = pick(rng, KINDS) if rng.random() < 0.15 else shapes[rng.randrange(total)].kind
    number = scene.counts[kind]
    many = plural(kind, 2).split(" ", 1)[1]
    found.append(
        Question(
            "count",
            wording("count_kind", rng, split, kinds=many),
            f"There {'is' if number == 1 else 'are'} {plural(kind, number)}.",
            Check("number", (str(number),)),
        )
    )
    color = shapes[rng.randrange(total)].color
    number = scene.counts[color]
    found.append(
        Question(
            "count",
            wording("count_color", rng, split, color=color),
            f"There {'is' if number == 1 else 'are'} {plural(f'{color} shape', number)}.",
            Check("number", (str(number),)),
        )
    )
    if total > 1:
        first, second = (
            rng.sample([k for k in KINDS if scene.counts[k]] or list(KINDS), 1)[0],
            pick(rng, KINDS),
        )
        if first != second:
            a, b = scene.counts[first], scene.counts[second]
            start = f"{'Yes' if a > b else 'No'}, there {'is' if a == 1 else 'are'}"
            answer = f"{start} {plural(first, a)} and {plural(second, b)}."
            key = {"a": plural(first, 2).split(" ", 1)[1], "b": plural(second, 2).split(" ", 1)[1]}
            found.append(
                Question(
                    "compare",
                    wording("more", rng, split, **key),
                    answer,
                    Check("yesno", (answer.split(",")[0],)),
                )
            )
    return found


def _relations(shapes: list[Shape], rng: Random, split: str) -> list[Question]:
    unique = [s for s in shapes if sum(o.thing == s.thing for o in shapes) == 1]
    if len(unique) < 2:
        return []
    a, b = rng.sample(unique, 2)
    found = []
    if a.size != b.size:
        big = a if a.size == "large" else b
        found.append(
            Question(
                "compare",
                wording("larger", rng, split, a=a.thing, b=b.thing),
                f"The {big.thing} is larger.",
                Check("choice", (big.thing,), (a.thing, b.thing)),
            )
        )
    dx, dy = b.cell % 3 - a.cell % 3, b.cell // 3 - a.cell // 3
    axes = [axis for axis, delta in (("x", dx), ("y", dy)) if delta]
    if pick(rng, axes) == "x":
        asked, true = pick(rng, ("left", "right")), "left" if dx > 0 else "right"
        key, says = f"{asked}_of", f"to the {true} of"
    else:
        asked, true = pick(rng, ("above", "below")), "above" if dy > 0 else "below"
        key, says = asked, true
    yes = "Yes" if asked == true else "No"
    found.append(
        Question(
            "compare",
            wording(key, rng, split, a=a.thing, b=b.thing),
            f"{yes}, the {a.thing} is {says} the {b.thing}.",
            Check("yesno", (yes,)),
        )
    )
    return found


def _describe(scene: Scene, rng: Random, split: str) -> Question:
    shapes: list[Shape] = scene.data
    total = len(shapes)
    told = shapes if total <= 6 else rng.sample(shapes, 6)
    told = sorted(told, key=lambda s: s.cell)
    lines = [f"The picture shows {plural('shape', total)} on {article(scene.background)} background."]
    for i, shape in enumerate(told):
        start = ("There is " + article(shape.size), "I can see " + article(shape.size))[i % 2]
        lines.append(f"{start} {shape.thing} in the {shape.pos}.")
    if total > 2:
        best = max((k for k in KINDS), key=lambda k: scene.counts[k])
        if scene.counts[best] > 1:
            lines.append(f"Altogether there are {plural(best, scene.counts[best])}.")
    return Question(
        "describe",
        wording("describe", rng, split),
        " ".join(lines),
        Check("facts", tuple(f"{s.thing}|{s.pos}" for s in told)),
    )
