"""Scenes of signs, one or two lines of words and numbers on a coloured plate: drawing and asking about them.

Knows nothing of tokens.
"""

from dataclasses import dataclass
from random import Random

from demo.canvas import Canvas, backdrop, tint
from demo.scene import Check, Element, Question, Scene, pick
from demo.shapes import article
from demo.wordings import wording
from demo.words import BACKGROUNDS, COLORS, WORDS

_PLATES = tuple(COLORS)
_DARK = frozenset({"red", "green", "blue", "purple", "brown", "black", "gray"})
_VOWELS, _CONSONANTS = "aeiou", "bcdfghjklmnprstvwz"


@dataclass(slots=True, frozen=True)
class Sign:
    """A sign: the plate's colour, and its lines from top to bottom, each of one word or one number."""

    plate: str
    lines: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(line for line in self.lines if not line.isdigit())

    @property
    def numbers(self) -> tuple[str, ...]:
        return tuple(line for line in self.lines if line.isdigit())


def word(rng: Random) -> str:
    """Draw a word to print, of up to 6 letters, mostly from the list, sometimes invented, in varying case."""
    if rng.random() < 0.12:
        size = rng.randint(3, 6)
        text = "".join(pick(rng, list(_CONSONANTS if i % 2 == 0 else _VOWELS)) for i in range(size))
    else:
        text = WORDS[rng.randrange(len(WORDS))]
    return (text.upper(), text.upper(), text.upper(), text.capitalize(), text)[rng.randrange(5)]


def number(rng: Random) -> str:
    """Draw a number of one to four digits; all lengths are equally likely."""
    size = rng.randint(1, 4)
    return str(rng.randint(10 ** (size - 1) if size > 1 else 0, 10**size - 1))


def draw(rng: Random) -> Scene:
    """Draw a sign on a plain background."""
    background = pick(rng, tuple(BACKGROUNDS))
    canvas = Canvas(rng, backdrop(background, rng))
    shape = rng.random()
    lines = (
        (word(rng),)
        if shape < 0.45
        else (number(rng),)
        if shape < 0.7
        else (word(rng), number(rng))
        if shape < 0.9
        else (word(rng), word(rng))
    )
    plate = pick(rng, [color for color in _PLATES if color not in background])
    box = _plate(canvas, plate, len(lines), rng)
    elements = [Element("sign", (canvas.box(*box),), plate, caption=f"{plate} sign")]
    elements += _write(canvas, Sign(plate, lines), box, rng)
    return Scene("sign", canvas.image, elements, background, {plate: 1}, Sign(plate, lines))


def _plate(canvas: Canvas, color: str, lines: int, rng: Random) -> tuple[float, float, float, float]:
    wide = canvas.width * rng.uniform(0.62, 0.95)
    high = canvas.height * (rng.uniform(0.3, 0.6) if lines == 1 else rng.uniform(0.5, 0.85))
    x = rng.uniform(0.02, 0.98) * (canvas.width - wide)
    y = rng.uniform(0.02, 0.98) * (canvas.height - high)
    box = (x, y, x + wide, y + high)
    fill = tint(color, rng)
    edge = (255, 255, 255) if color in _DARK else (30, 30, 30)
    style = rng.randrange(3)
    radius = 0 if style == 0 else canvas.unit * 0.06
    canvas.draw.rounded_rectangle(
        box, radius, fill, outline=edge if style == 2 else None, width=max(2, canvas.unit // 80)
    )
    return box


def _write(canvas: Canvas, sign: Sign, box: tuple[float, float, float, float], rng: Random) -> list[Element]:
    left, top, right, bottom = box
    ink = (252, 252, 252) if sign.plate in _DARK else (15, 15, 15)
    step = (bottom - top) / len(sign.lines)
    found = []
    for i, line in enumerate(sign.lines):
        size = canvas.fit(
            line, (right - left) * rng.uniform(0.65, 0.9), int(min(step * 0.8, canvas.unit * 0.3))
        )
        at = ((left + right) / 2, top + step * (i + 0.5))
        text_box = canvas.text(at, line, size, ink)
        numeric = line.isdigit()
        found.append(
            Element(
                "number" if numeric else "word",
                (text_box,),
                sign.plate,
                text="" if numeric else line,
                value=line if numeric else "",
                caption=line,
                ordered=True,
                layer=1,
            )
        )
    return found


def ask(scene: Scene, rng: Random, split: str) -> list[Question]:
    """Return all kinds of questions that this sign allows."""
    sign: Sign = scene.data
    found = []
    if len(sign.words) == 1:
        found.append(
            Question(
                "word",
                wording("read_word", rng, split),
                f'The sign says "{sign.words[0]}".'
                if not sign.numbers
                else f'The word is "{sign.words[0]}".',
                Check("text", sign.words),
            )
        )
    if sign.numbers:
        found.append(
            Question(
                "number",
                wording("read_number", rng, split),
                f"The number is {sign.numbers[0]}.",
                Check("number", sign.numbers),
            )
        )
    if len(sign.lines) == 2:
        found.append(
            Question(
                "word",
                wording("read_all", rng, split),
                f'The sign says "{" ".join(sign.lines)}".',
                Check("text", (" ".join(sign.lines),)),
            )
        )
    if sign.words:
        true = pick(rng, sign.words)
        asked = true if rng.random() < 0.5 else word(rng)
        yes = asked.lower() in (w.lower() for w in sign.words)
        answer = f'Yes, the sign says "{true}".' if yes else f'No, the sign says "{sign.words[0]}".'
        found.append(
            Question(
                "yesno",
                wording("says", rng, split, word=asked),
                answer,
                Check("yesno", (answer.split(",")[0],)),
            )
        )
    found.append(
        Question(
            "color",
            wording("sign_color", rng, split),
            f"The sign is {sign.plate}.",
            Check("choice", (sign.plate,), _PLATES),
        )
    )
    found.append(_describe(scene, rng, split))
    return found


def _describe(scene: Scene, rng: Random, split: str) -> Question:
    sign: Sign = scene.data
    lines = [f"The picture shows {article(sign.plate)} sign on {article(scene.background)} background."]
    for i, line in enumerate(sign.lines):
        what = "number" if line.isdigit() else "word"
        lines.append(f"The {what} {line} is written on it." if i == 0 else f"Below it is the {what} {line}.")
    lines.append(f"The text is {'white' if sign.plate in _DARK else 'black'}.")
    return Question(
        "describe",
        wording("describe", rng, split),
        " ".join(lines),
        Check("facts", (f"{sign.plate} sign", *sign.lines)),
    )
