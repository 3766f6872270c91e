"""Scoring is exact: the right value and no rival."""

import pytest

from demo.scene import Check
from demo.scoring import mentioned, numbers, score
from demo.words import COLORS, POSITIONS


@pytest.mark.parametrize(
    ("answer", "check", "mark"),
    [
        ("The circle is red.", Check("choice", ("red",), tuple(COLORS)), 1.0),
        ("The circle is red or blue.", Check("choice", ("red",), tuple(COLORS)), 0.0),
        ("It was covered.", Check("choice", ("red",), tuple(COLORS)), 0.0),
        ("In the top left.", Check("choice", ("top left",), POSITIONS), 1.0),
        ("In the center.", Check("choice", ("top center",), POSITIONS), 0.0),
        ("There are three circles.", Check("number", ("3",)), 1.0),
        ("There are 3 circles.", Check("number", ("3",)), 1.0),
        ("There are no circles.", Check("number", ("0",)), 1.0),
        ("Three or four.", Check("number", ("3",)), 0.0),
        ("The total is 12.50.", Check("number", ("12.5",)), 1.0),
        ("The total is 12.5", Check("number", ("12.50",)), 1.0),
        ("The total is 112.50", Check("number", ("12.50",)), 0.0),
        ('The sign says "Open".', Check("text", ("OPEN",)), 1.0),
        ('The sign says "OPENED".', Check("text", ("OPEN",)), 0.0),
        ('The sign says "stop".', Check("text", ("sign",)), 0.0),
        ("Yes, there is.", Check("yesno", ("Yes",)), 1.0),
        ("No.", Check("yesno", ("Yes",)), 0.0),
        ("", Check("yesno", ("Yes",)), 0.0),
        ("Tea costs 3. Milk costs 4.", Check("facts", ("Tea|3", "Milk|5")), 0.5),
        ("Tea costs 4. Milk costs 3.", Check("facts", ("Tea|3", "Milk|4")), 0.0),
    ],
)
def test_marks(answer: str, check: Check, mark: float) -> None:
    assert score(answer, check) == mark


def test_the_longer_of_two_overlapping_options_is_meant() -> None:
    assert mentioned("It is in the Top Center.", POSITIONS) == {"top center"}


def test_numbers_in_words_and_digits() -> None:
    assert numbers("No, two of 007 and 3.10") == ["0", "2", "7", "3.1"]


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown check"):
        score("x", Check("vibes", ("good",)))
