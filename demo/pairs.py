"""Questions about two pictures in one message. Uses the shape and sign scenes; knows nothing of tokens."""

from random import Random

from demo import shapes, signs
from demo.scene import Check, Question, Scene
from demo.wordings import wording
from demo.words import KINDS, NUMBERS


def draw(rng: Random, split: str) -> tuple[Scene, Scene, Question]:
    """Draw two pictures and a question that needs both or names one of them."""
    way = rng.choice(("two_more", "two_shape", "two_word", "two_nth", "two_same"))
    if way == "two_word":
        first, second = _one_line_sign(rng), _one_line_sign(rng)
        a, b = first.data.lines[0], second.data.lines[0]
        return (
            first,
            second,
            Question(
                "two_pictures",
                wording(way, rng, split),
                f'The first sign says "{a}" and the second sign says "{b}".',
                Check("facts", (f"first|{a}", f"second|{b}")),
            ),
        )
    if way == "two_more":
        return _more(rng, split)
    first, second = shapes.draw(rng, 1), shapes.draw(rng, 1)
    a, b = first.data[0], second.data[0]
    if way == "two_same":
        same = a.kind == b.kind
        answer = (
            f"Yes, both show a {a.kind}."
            if same
            else f"No, the first shows a {a.kind} and the second a {b.kind}."
        )
        return (
            first,
            second,
            Question(
                "two_pictures", wording(way, rng, split), answer, Check("yesno", (answer.split(",")[0],))
            ),
        )
    if way == "two_nth":
        nth, shape = rng.choice((("first", a), ("second", b)))
        return (
            first,
            second,
            Question(
                "two_pictures",
                wording(way, rng, split, nth=nth),
                f"The {nth} picture shows {shapes.article(shape.size)} {shape.thing}.",
                Check("choice", (shape.kind,), KINDS),
            ),
        )
    return (
        first,
        second,
        Question(
            "two_pictures",
            wording(way, rng, split),
            f"The first picture shows {shapes.article(a.thing)} and the second shows "
            f"{shapes.article(b.thing)}.",
            Check("facts", (a.thing, b.thing)),
        ),
    )


def _one_line_sign(rng: Random) -> Scene:
    while True:
        scene = signs.draw(rng)
        if len(scene.data.lines) == 1:
            return scene


def _more(rng: Random, split: str) -> tuple[Scene, Scene, Question]:
    while True:
        first, second = shapes.draw(rng, 6), shapes.draw(rng, 6)
        a, b = len(first.data), len(second.data)
        if a != b:
            break
    best = "first" if a > b else "second"
    numbers = f"the first has {NUMBERS[a]} and the second has {NUMBERS[b]}"
    return (
        first,
        second,
        Question(
            "two_pictures",
            wording("two_more", rng, split),
            f"The {best} picture has more shapes: {numbers}.",
            Check("choice", (f"{best} picture",), ("first picture", "second picture")),
        ),
    )


def more(first: Scene, second: Scene, rng: Random, split: str) -> list[Question]:
    """Return further questions about a drawn pair: what each of the two pictures shows."""
    if first.family != "shapes":
        said = [
            f'The {nth} sign says "{one.data.lines[0]}".'
            for nth, one in (("first", first), ("second", second))
        ]
        return [
            Question(
                "two_pictures",
                wording("two_sign", rng, split, nth=nth),
                answer,
                Check("text", (one.data.lines[0],)),
            )
            for nth, one, answer in zip(("first", "second"), (first, second), said, strict=True)
        ]
    return [
        Question(
            "two_pictures",
            wording("two_count", rng, split, nth=nth),
            f"The {nth} picture has {shapes.plural('shape', len(one.data))}.",
            Check("number", (str(len(one.data)),)),
        )
        for nth, one in (("first", first), ("second", second))
    ]
