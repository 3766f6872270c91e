"""Reading calls takes time for what is new only, however much was held back before."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processing.tools import reader as module
from processing.tools.braces import Braces
from processing.tools.reader import MAX_HELD, CallReader
from tests.processing.test_tools import STYLES, read

CALL = '{"name": "f", "arguments": {}}'
LATE = '{"arguments": {"a": "}"}, "name": "f"}'
FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "[CALL_ID]", "[ARGS]"),
    *("<tool", "[", "]", "{", "}", ";", ",", ":", '"', "\\", " ", "\n", "f", "\u2003"),
    *('"name"', '"arguments"', '"parameters"', '"id"', '{"na', ' "f"', "1"),
    *(" " * 30, "\n" * 47, "x" * 60, "[" * 40, CALL, LATE, '{"type": "function", "name": "f"}', "f{}"),
]


@settings(max_examples=200, deadline=None)
@given(
    style=st.sampled_from(sorted(STYLES)),
    fragments=st.lists(st.sampled_from(FRAGMENTS), max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
@example("hermes", ["x", "<tool_call>", LATE], [])
@example("hermes", [" " * 30, "<tool_call>", *[" " * 30] * 2, CALL], [])
@example("mistral", ["[TOOL_CALLS]", *[" " * 30] * 3, "[", CALL], [])
@example("llama3_json", [*[" " * 30] * 3, CALL], [70])
def test_what_is_read_does_not_depend_on_the_cuts_where_little_is_held(
    style: str, fragments: list[str], cuts: list[int]
) -> None:
    text = "".join(fragments)
    ends = [0, *sorted(cuts), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_HELD", 64)  # so that short texts reach it
        whole = read(CallReader(STYLES[style], {"f"}), [text])
        for pieces in (list(text), [text[a:b] for a, b in itertools.pairwise(ends)]):
            assert read(CallReader(STYLES[style], {"f"}), pieces) == whole


@pytest.mark.parametrize(
    ("style", "begin", "endless"),
    [
        ("hermes", "a", " "),
        ("hermes", "<tool_call>", "\n"),
        ("hermes", "<tool_call>{", " "),
        ("hermes", '<tool_call>{"', "k"),
        ("hermes", '<tool_call>{"name"', " "),
        ("hermes", '<tool_call>{"name": "', "f"),
        ("hermes", '<tool_call>{"id": "', "i"),
        ("hermes", f"<tool_call>{CALL}", " "),
        ("llama3_json", "", " "),
        ("llama3_json", "<|python_tag|>", " "),
        ("llama3_json", f"{CALL};", "\n"),
        ("mistral", "[TOOL_CALLS]", "["),
        ("mistral", "[TOOL_CALLS]", " ["),
        ("mistral [ARGS]", "[TOOL_CALLS]f", " "),
        ("mistral [ARGS]", "[TOOL_CALLS]f[CALL_ID]", "i"),
    ],
)
def test_little_is_looked_at_again(style: str, begin: str, endless: str) -> None:
    reader = CallReader(STYLES[style], {"f"})
    reader.feed(begin)
    most = 0
    for _ in range(4 * MAX_HELD):
        reader.feed(endless)
        most = max(most, len(reader._unread) + len(reader._marker))  # a step looks at all of them
    assert most <= MAX_HELD + 20


@pytest.mark.parametrize(
    ("style", "before", "after"),
    [
        ("hermes", "a", f"<tool_call>{CALL}"),
        ("hermes", "<tool_call>", CALL),
        ("llama3_json", "", CALL),
        ("mistral [ARGS]", "[TOOL_CALLS]f", "{}"),
    ],
)
def test_white_space_up_to_what_is_held_is_left_out(style: str, before: str, after: str) -> None:
    few = MAX_HELD // 2
    content = before.rstrip("f").removesuffix(STYLES[style].begin)
    for pieces in ([before + " " * few + after], [before, *" " * few, after]):
        text, calls = read(CallReader(STYLES[style], {"f"}), pieces)
        assert (text, calls) == (content, [("f", "{}")])


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", "a\n\n<tool_call>no call"),
        ("hermes", "a" + " " * MAX_HELD + "<tool_call>\n no call"),
        ("mistral", "a [TOOL_CALLS]1"),
        ("llama3_json", "<|python_tag|>print(1)"),
        ("llama3_json", " \n<|python_tag|> print(1)"),
    ],
)
def test_what_no_call_follows_stays_text(style: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert read(CallReader(STYLES[style], {"f"}), pieces) == (text, [])


def test_white_space_before_a_call_is_shown_beyond_what_is_held() -> None:
    text = "a" + " " * (MAX_HELD + 5) + f"<tool_call>{CALL}"
    for pieces in ([text], list(text)):
        assert read(CallReader(STYLES["hermes"], {"f"}), pieces) == ("a" + " " * 5, [("f", "{}")])


def test_an_object_that_is_not_a_call_is_text_with_all_that_is_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or each of the objects in it would be read from its beginning to its end once more."""
    inner = f'<tool_call>{{"id": <tool_call>{CALL}}}'
    assert read(CallReader(STYLES["hermes"], {"f"}), [inner, f"<tool_call>{CALL}"]) == (inner, [("f", "{}")])

    num_scanned = 0
    end = Braces.end

    def counted(self: Braces, text: str) -> int | None:
        nonlocal num_scanned
        num_scanned += len(text)
        return end(self, text)

    monkeypatch.setattr(Braces, "end", counted)
    nested = '<tool_call>{"id": ' * 100 + "}" * 100
    for pieces in ([nested], list(nested)):
        num_scanned = 0
        assert read(CallReader(STYLES["hermes"], {"f"}), pieces) == (nested, [])
        assert num_scanned <= len(nested)


def test_a_long_call_in_another_order_is_read_once() -> None:
    arguments = '{"a": "' + "x" * 3 * MAX_HELD + '"}'
    call = f'<tool_call>{{"arguments": {arguments}, "name": "f"}}</tool_call>'
    for pieces in ([call], list(call)):
        assert read(CallReader(STYLES["hermes"], {"f"}), pieces) == ("", [("f", arguments)])


def test_what_is_held_of_a_cut_object_is_shown_at_the_end() -> None:
    cut = '<tool_call>\n{"id": "' + "i" * 3 * MAX_HELD
    assert read(CallReader(STYLES["hermes"], {"f"}), list(cut)) == (cut, [])
