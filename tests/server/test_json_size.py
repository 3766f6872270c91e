"""How much a body makes the parser do is known before it is parsed, whatever stands in its strings."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.json_size import MAX_COMMAS, MAX_CONTAINERS, MAX_STRINGS, JsonSize
from tests.server.conftest import MODEL, Live
from tests.server.test_errors import check_shape

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HEADERS = {"Content-Type": "application/json"}
USER = {"role": "user", "content": "Hi"}
TEXTS = st.text(alphabet='\\"[{,: a\n\u00e9', max_size=6)
VALUES = st.recursive(
    TEXTS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def counted(value: Any) -> tuple[int, int, int]:
    """Lists and objects, keys and strings, commas."""
    if isinstance(value, str):
        return 0, 1, 0
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    containers, strings, commas = map(sum, zip((0, 0, 0), *map(counted, inner), strict=True))
    return containers + 1, strings, commas + max(0, len(value) - 1)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, cuts=st.lists(st.integers(0, 80), max_size=6), indent=st.sampled_from([None, 1]))
@example(["\\", '\\"', "a\\"], [4, 5], None)
def test_counts_do_not_depend_on_the_pieces(value: Any, cuts: list[int], indent: int | None) -> None:
    body = json.dumps(value, indent=indent).encode()
    ends = [0, *sorted(cuts), len(body)]
    one_by_one = [body[at : at + 1] for at in range(len(body))]
    for pieces in ([body], one_by_one, [body[a:b] for a, b in itertools.pairwise(ends)]):
        size = JsonSize()
        for piece in pieces:
            size.add(piece)
        assert (size.containers, size.strings, size.commas) == counted(value)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, '{"metadata": [' + "{}," * MAX_CONTAINERS + "0]}", f"{MAX_CONTAINERS} lists and objects"),
        (CHAT, "{" + ",".join(f'"{n}" :1' for n in range(MAX_STRINGS + 1)) + "}", f"{MAX_STRINGS} keys and"),
        (CHAT, "[" + r'"\\",' * MAX_STRINGS + '""]', f"{MAX_STRINGS} keys and strings"),
        (COMPLETIONS, '{"prompt": [' + "1," * (MAX_COMMAS + 1) + "1]}", f"{MAX_COMMAS} commas"),
        (COMPLETIONS, '{"prompt": [' + "[1,1]," * (MAX_COMMAS // 2) + "1]}", "100000 lists and objects"),
    ],
)
def test_more_than_any_request_needs_is_not_parsed(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: str, said: str
) -> None:
    parsed = []
    monkeypatch.setattr("server.body.from_json", lambda body, **_: parsed.append(body))
    error = check_shape(http.post(path, content=body, headers=HEADERS), 413, "request_too_large")
    assert f"more than {said}" in error["message"]
    assert not parsed


def test_long_texts_may_be_about_json_and_tables(live: Live, http: httpx.Client) -> None:
    rows = json.dumps([{"a": n, "b": [n, "x"]} for n in range(MAX_STRINGS // 2)])
    told = rows + "1,2,3;\n" * (MAX_COMMAS // 2 + 1) + "\\" * 3
    body = {"model": MODEL, "messages": [USER], "max_tokens": 1, "prediction": {"content": told}}
    assert http.post(CHAT, json=body).status_code == 200
    assert http.post(CHAT, content=json.dumps(body, indent=2), headers=HEADERS).status_code == 200


def test_a_million_token_ids_are_read(http: httpx.Client) -> None:
    error = check_shape(http.post(COMPLETIONS, json={"prompt": [7] * 1_000_000}), 400)
    assert error["code"] == "context_length_exceeded"
