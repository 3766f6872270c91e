"""Stop strings found in a stream, against a search in the whole text."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processing.stop import StopMatcher

SHORT = st.text(alphabet="abc", min_size=1, max_size=5)
REPEATING = st.text(alphabet="ab", min_size=1, max_size=12)  # begins again inside itself


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, start, stop = min(found)
    return text[: end if include else start], stop


def cut(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(bounds)]


@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(SHORT | REPEATING, max_size=4),
    cuts=st.lists(st.integers(0, 40), max_size=10),
    include=st.booleans(),
)
def test_streamed_equals_whole(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    wanted, stop = naive(text, stops, include)
    out = ""
    for piece in cut(text, cuts):
        out += matcher.feed(piece)
        assert wanted.startswith(out)  # nothing is taken back later
    assert (out + matcher.finish(), matcher.matched) == (wanted, stop)
    if stop is not None:
        assert matcher.feed("more") == ""


@given(text=st.text(max_size=30), stops=st.lists(SHORT, max_size=4))
def test_only_what_may_begin_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out = matcher.feed(text)
    if matcher.matched is None:
        held = text[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "include", "out", "matched"),
    [
        (["\n\n"], ["one\n", "two\n", "\nthree"], False, "one\ntwo", "\n\n"),
        (["\n\n"], ["one\n", "two\n", "\nthree"], True, "one\ntwo\n\n", "\n\n"),
        (["aab"], ["aaab"], False, "a", "aab"),
        (["bc", "abcd"], ["abcd"], False, "a", "bc"),  # completed first
        (["bc", "abc"], ["xabc"], False, "x", "abc"),  # completed together: the longer one
        (["END"], ["EN", "E", "ND!"], False, "EN", "END"),
        (["END"], ["the E"], False, "the E", None),
        ([], ["anything"], False, "anything", None),
    ],
)
def test_examples(stops: list[str], pieces: list[str], include: bool, out: str, matched: str | None) -> None:
    matcher = StopMatcher(stops, include_stop=include)
    text = "".join([*map(matcher.feed, pieces), matcher.finish()])
    assert (text, matcher.matched) == (out, matched)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])


def test_long_stop_strings_that_almost_match_cost_little() -> None:
    """At the limits of the API: 16 of 1024 characters, and a text that keeps all of them in suspense."""
    matcher = StopMatcher(["a" * 1023 + chr(ord("b") + i) for i in range(16)])
    begin = time.monotonic()
    out = "".join(matcher.feed("a") for _ in range(4000))
    assert time.monotonic() - begin < 4  # comparing ends with beginnings took 20 ms a character
    assert len(out) == 4000 - 1023
    assert matcher.feed("c") == ""
    assert matcher.matched == "a" * 1023 + "c"
