"""Exact scoring of an answer against a :class:`~demo.scene.Check`. Pure functions over strings."""

import re

from demo.scene import Check
from demo.words import NUMBERS

_WORD_NUMBERS = {word: str(i) for i, word in enumerate(NUMBERS)} | {"no": "0", "none": "0"}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def score(answer: str, check: Check) -> float:
    """Return 1.0 if ``answer`` is correct, else 0.0; for ``facts``, the share of facts that it states.

    Raises ValueError for an unknown kind of check.
    """
    match check.kind:
        case "choice":
            return float(mentioned(answer, check.options) == {check.values[0].lower()})
        case "number":
            return float(_last_number(answer) == _plain(check.values[0]))
        case "text":
            return float(_bare(check.values[0]) in _bare(answer).replace(_bare("the sign says"), " "))
        case "yesno":
            first = re.match(r"\W*(\w+)", answer)
            return float(first is not None and first[1].lower() == check.values[0].lower())
        case "facts":
            sentences = re.split(r"(?<=[.!?])\s+", answer)
            return sum(any(_states(line, fact) for line in sentences) for fact in check.values) / len(
                check.values
            )
    raise ValueError(f"unknown check {check.kind!r}")


def mentioned(answer: str, options: tuple[str, ...]) -> set[str]:
    """Return the ``options`` in ``answer`` as whole words, in lower case; where two overlap, the longer."""
    longest_first = sorted((re.escape(option.lower()) for option in options), key=len, reverse=True)
    return set(re.findall(rf"\b(?:{'|'.join(longest_first)})\b", answer.lower()))


def numbers(answer: str) -> list[str]:
    """Return the numbers in ``answer`` in order, without redundant zeros; words up to ten count ("no": 0)."""
    found = []
    for token in re.findall(r"\d+(?:\.\d+)?|[a-z]+", answer.lower()):
        if _NUMBER.fullmatch(token):
            found.append(_plain(token))
        elif token in _WORD_NUMBERS:
            found.append(_WORD_NUMBERS[token])
    return found


def _last_number(answer: str) -> str:
    """Return the only number stated, or "" if there are none or several different ones."""
    found = set(numbers(answer))
    return found.pop() if len(found) == 1 else ""


def _plain(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number.lstrip("0") or "0"


def _bare(text: str) -> str:
    return " " + " ".join(re.findall(r"[a-z0-9]+", text.lower())) + " "


def _states(sentence: str, fact: str) -> bool:
    return all(_bare(part) in _bare(sentence) for part in fact.split("|"))
