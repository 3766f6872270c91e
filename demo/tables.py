"""Small tables and shop receipts: drawing them and asking about them.

Knows nothing of tokens.
"""

from dataclasses import dataclass, replace
from random import Random

from demo.canvas import Canvas, backdrop
from demo.scene import Check, Element, Question, Scene, pick
from demo.wordings import wording
from demo.words import ANIMALS, CITIES, FRUITS, GOODS, NUMBERS, PEOPLE, SHOPS

_TABLE_ASPECTS = ((1.0, 1.0), (1.2, 1.0), (4 / 3, 1.0))
_RECEIPT_ASPECTS = ((1.0, 1.0), (1.0, 1.2), (1.0, 4 / 3))
_INK = (20, 20, 20)
_HEADS = (
    (PEOPLE, "Name", ("Age", "Score", "Points")),
    (CITIES, "City", ("Temp", "Sales")),
    (FRUITS, "Fruit", ("Price", "Count")),
    (ANIMALS, "Animal", ("Age", "Count")),
)


@dataclass(slots=True, frozen=True)
class Sheet:
    """A table or receipt.

    ``rows`` of (name, number as printed); ``title`` is the shop or the first column, ``column`` the second.
    """

    kind: str
    title: str
    column: str
    rows: tuple[tuple[str, str], ...]
    total: str = ""


def draw_table(rng: Random) -> Scene:
    """Draw a table of two columns with a header."""
    names, title, columns = _HEADS[rng.randrange(len(_HEADS))]
    number = rng.randint(2, 5)
    values = rng.sample(range(1, 100), number)
    rows = tuple(zip(rng.sample(names, number), (str(value) for value in values), strict=True))
    sheet = Sheet("table", title, pick(rng, columns), rows)
    background = pick(rng, ("white", "white", "cream", "light blue"))
    canvas = Canvas(rng, backdrop(background, rng), _TABLE_ASPECTS)
    return Scene(
        "table", canvas.image, _paint_table(canvas, sheet, rng), background, {"shapes": number}, sheet
    )


def _paint_table(canvas: Canvas, sheet: Sheet, rng: Random) -> list[Element]:
    left, right = canvas.width * 0.06, canvas.width * 0.94
    high = canvas.height * rng.uniform(0.13, 0.15)
    top = (canvas.height - high * (len(sheet.rows) + 1)) * rng.uniform(0.1, 0.9)
    split = left + (right - left) * rng.uniform(0.5, 0.6)
    if rng.random() < 0.7:
        canvas.draw.rectangle(
            (left, top, right, top + high),
            fill=rng.choice(((205, 215, 235), (220, 220, 220), (210, 235, 210))),
        )
    size = int(high * 0.58)
    found = [
        Element(
            "head",
            (canvas.text((left + 8, top + high / 2), sheet.title, size, _INK, "lm"),),
            text=sheet.title,
            caption=sheet.title,
            ordered=True,
        ),
        Element(
            "head",
            (canvas.text((split + 8, top + high / 2), sheet.column, size, _INK, "lm"),),
            text=sheet.column,
            caption=sheet.column,
            ordered=True,
        ),
    ]
    for i, (name, value) in enumerate(sheet.rows, 1):
        found += _row(canvas, name, value, (left + 8, split + 8), top + high * (i + 0.5), size, "lm", i)
    for i in range(len(sheet.rows) + 2):
        canvas.draw.line((left, top + high * i, right, top + high * i), fill=(90, 90, 90))
    for x in (left, split, right):
        canvas.draw.line((x, top, x, top + high * (len(sheet.rows) + 1)), fill=(90, 90, 90))
    return found


def _row(
    canvas: Canvas, name: str, value: str, at: tuple[float, float], y: float, size: int, anchor: str, i: int
) -> list[Element]:
    label, number = (
        canvas.text((at[0], y), name, size, _INK, "lm"),
        canvas.text((at[1], y), value, size, _INK, anchor),
    )
    about = Element("word", (label,), text=name, value=value, count=i, caption=name, ordered=True)
    return [about, replace(about, cls="number", boxes=(number,), caption=value)]


def draw_receipt(rng: Random) -> Scene:
    """Draw a receipt: shop, items with prices, total."""
    number = rng.randint(2, 4)
    cents = [
        rng.randint(1, 19) * 50 if rng.random() < 0.5 else rng.randint(10, 99) * 10 for _ in range(number)
    ]
    while len(set(cents)) < number:
        cents = [rng.randint(10, 99) * 10 for _ in range(number)]
    rows = tuple(zip(rng.sample(GOODS, number), (_money(c) for c in cents), strict=True))
    sheet = Sheet("receipt", pick(rng, SHOPS), "price", rows, _money(sum(cents)))
    canvas = Canvas(
        rng, (rng.randint(150, 200),) * 3 if rng.random() < 0.5 else (246, 246, 240), _RECEIPT_ASPECTS
    )
    return Scene(
        "receipt", canvas.image, _paint_receipt(canvas, sheet, rng), "white", {"shapes": number}, sheet
    )


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _paint_receipt(canvas: Canvas, sheet: Sheet, rng: Random) -> list[Element]:
    left, right = canvas.width * rng.uniform(0.04, 0.1), canvas.width * rng.uniform(0.9, 0.96)
    canvas.draw.rectangle((left, 0, right, canvas.height), fill=(253, 253, 250))
    high = canvas.height * rng.uniform(0.125, 0.15)
    top = canvas.height * rng.uniform(0.02, 0.08)
    size = int(min(high * 0.6, canvas.width * 0.085))
    title = canvas.text((canvas.width / 2, top + high / 2), sheet.title, int(size * 1.15), _INK)
    found = [Element("head", (title,), text=sheet.title, caption=sheet.title, ordered=True)]
    at = (left + canvas.width * 0.04, right - canvas.width * 0.04)
    for i, (name, value) in enumerate(sheet.rows, 1):
        found += _row(canvas, name, value, at, top + high * (i + 0.5), size, "rm", i)
    y = top + high * (len(sheet.rows) + 1.05)
    canvas.draw.line((at[0], y, at[1], y), fill=(60, 60, 60), width=2)
    found += _row(canvas, "TOTAL", sheet.total, at, y + high * 0.5, size, "rm", 0)
    return found


def ask(scene: Scene, rng: Random, split: str) -> list[Question]:
    """Return all kinds of questions that this sheet allows."""
    sheet: Sheet = scene.data
    names = tuple(name for name, _ in sheet.rows)
    ordered = sorted(sheet.rows, key=lambda row: float(row[1]))
    price = sheet.kind == "receipt" or sheet.column == "Price"
    found = []
    for name, value in rng.sample(sheet.rows, 2):
        if price:
            text, answer = wording("price", rng, split, item=name), f"The price of {name} is {value}."
        else:
            text = wording("table_value", rng, split, item=name, column=sheet.column.lower())
            answer = f"The {sheet.column.lower()} of {name} is {value}."
        found.append(Question(sheet.kind, text, answer, Check("number", (value,))))
    best, least = ordered[-1], ordered[0]
    if price:
        found.append(
            Question(
                sheet.kind,
                wording("dearest", rng, split),
                f"The most expensive is {best[0]} with {best[1]}.",
                Check("choice", (best[0],), names),
            )
        )
        found.append(
            Question(
                sheet.kind,
                wording("cheapest", rng, split),
                f"The cheapest is {least[0]} with {least[1]}.",
                Check("choice", (least[0],), names),
            )
        )
    else:
        column = sheet.column.lower()
        found.append(
            Question(
                sheet.kind,
                wording("table_max", rng, split, column=column),
                f"The highest {column} is {best[1]}, for {best[0]}.",
                Check("choice", (best[0],), names),
            )
        )
    if sheet.kind == "receipt":
        found.append(
            Question(
                "receipt",
                wording("total", rng, split),
                f"The total is {sheet.total}.",
                Check("number", (sheet.total,)),
            )
        )
        found.append(
            Question(
                "receipt",
                wording("shop", rng, split),
                f'The shop is "{sheet.title}".',
                Check("text", (sheet.title,)),
            )
        )
    if price:
        found.append(
            Question(
                sheet.kind,
                wording("rows", rng, split),
                f"There are {NUMBERS[len(names)]} items.",
                Check("number", (str(len(names)),)),
            )
        )
    found.append(_describe(scene, rng, split))
    return found


def _describe(scene: Scene, rng: Random, split: str) -> Question:
    sheet: Sheet = scene.data
    if sheet.kind == "receipt":
        lines = [f'The picture shows a receipt from "{sheet.title}" with {NUMBERS[len(sheet.rows)]} items.']
        lines += [f"{name} costs {value}." for name, value in sheet.rows]
        lines.append(f"The total is {sheet.total}.")
    else:
        lines = [
            f"The picture shows a table with {NUMBERS[len(sheet.rows)]} rows.",
            f"The columns are {sheet.title} and {sheet.column}.",
        ]
        lines += [f"{name} has {value}." for name, value in sheet.rows]
    return Question(
        "describe",
        wording("describe", rng, split),
        " ".join(lines),
        Check("facts", tuple(f"{name}|{value}" for name, value in sheet.rows)),
    )
