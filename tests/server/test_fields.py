"""The table of fields in ``docs/api.md`` is true: what works changes something, what has no effect changes
nothing, what is refused is refused by name; no field of a schema, or of the ``openai`` package, is missing.

"Something" is what the engine is told, what the chat template sees, and the answer with its headers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.responses import response_create_params

from server.schemas.base import Refused
from server.schemas.generation import StreamOptions
from tests.imports import ROOT
from tests.server.conftest import MODEL, Live, start_live, stop_live
from tests.server.fakes import IMAGE_TEXT
from tests.server.field_examples import BASE, NO_EFFECT, REFUSED, TESTED, WORKS
from tests.server.field_tables import ANSWERS, PAGE, fields_of, with_tables

URLS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
PACKAGE = {
    "chat": chat_params.CompletionCreateParamsNonStreaming,
    "completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "responses": response_create_params.ResponseCreateParamsNonStreaming,
}


def cases(examples: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [(endpoint, path) for endpoint, paths in examples.items() for path in paths]


@pytest.fixture(scope="module")
def obeying() -> Iterator[Live]:
    """A server that lets clients say all that they can say."""
    live = start_live(scheduling_policy="priority", target_visual_compression={"method": "none"})
    yield live
    stop_live(live)


def ask(live: Live, endpoint: str, fields: dict[str, Any]) -> tuple[int, Any]:
    """Status, and all that the request brought about, without times."""
    live.engine.reset()
    live.engine.answer = live.engine.says(f"Hello,{IMAGE_TEXT} world!", step=4, drafts=True)
    live.engine.processor.applied = None
    with live.http(headers={"X-Request-Id": "probe"}) as http:
        response = http.post(URLS[endpoint], json=BASE[endpoint] | fields)
    told = [re.sub(r"(probe|mine)-[0-9a-f]{8}", "id", repr(request)) for request in live.engine.requests]
    seen = re.sub(r" at 0x[0-9A-F]+", "", repr(live.engine.processor.applied))
    body = re.sub(r'"(created|created_at|completed_at)":\d+', "", response.text)
    headers = {name: response.headers.get(name) for name in ("content-type", "x-request-id")}
    return response.status_code, (told, seen, body, headers)


@pytest.mark.parametrize(("endpoint", "path"), cases(WORKS))
def test_what_works_changes_something(obeying: Live, endpoint: str, path: str) -> None:
    without, with_it = WORKS[endpoint][path]
    status, before = ask(obeying, endpoint, without)
    assert status == 200, before
    status, after = ask(obeying, endpoint, with_it)
    assert status == (404 if path == "model" else 200), after
    assert before != after


@pytest.mark.parametrize(("endpoint", "path"), cases(NO_EFFECT))
def test_what_has_no_effect_changes_nothing(obeying: Live, endpoint: str, path: str) -> None:
    without, with_it = NO_EFFECT[endpoint][path]
    status, before = ask(obeying, endpoint, without)
    assert status == 200, before
    if path == "user" and endpoint == "responses":  # the answer repeats it
        before = [re.sub(r'"user":null', '"user":"u"', str(one)) for one in before]
        assert [str(one) for one in ask(obeying, endpoint, with_it)[1]] == before
    else:
        assert ask(obeying, endpoint, with_it) == (200, before)


@pytest.mark.parametrize(("endpoint", "path"), cases(REFUSED))
def test_what_is_refused_is_named(obeying: Live, endpoint: str, path: str) -> None:
    with obeying.http() as http:
        response = http.post(URLS[endpoint], json=BASE[endpoint] | REFUSED[endpoint][path])
        error = response.json()["error"]
        assert response.status_code == 400
        assert re.sub(r"\[\d+\]", "[]", error["param"]) == path
        field = ANSWERS[endpoint].model_fields.get(path)
        for mark in field.metadata if field else ():
            if isinstance(mark, Refused):
                assert error["code"] == "unsupported_parameter"
                assert path in error["message"]
                for value in mark.unless:
                    assert http.post(URLS[endpoint], json=BASE[endpoint] | {path: value}).status_code == 200


@pytest.mark.parametrize("endpoint", ANSWERS)
def test_every_field_has_its_example(endpoint: str) -> None:
    """``type`` says which of several kinds an object is, and nothing else."""
    found = fields_of(ANSWERS[endpoint])
    for status, examples in (("works", WORKS), ("no effect", NO_EFFECT), ("refused", REFUSED)):
        wanted = {path for path, field in found.items() if field.status == status and path[-5:] != ".type"}
        known = set(examples[endpoint]) | (set(TESTED) & wanted if status == "works" else set())
        assert known == wanted


@pytest.mark.parametrize("test", TESTED.values())
def test_tests_that_are_named_exist(test: str) -> None:
    file, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize("endpoint", ANSWERS)
def test_every_field_of_the_package_is_known(endpoint: str) -> None:
    assert set(ANSWERS[endpoint].model_fields) >= set(get_type_hints(PACKAGE[endpoint]))
    assert set(StreamOptions.model_fields) >= set(get_type_hints(ChatCompletionStreamOptionsParam))


@pytest.mark.parametrize("endpoint", ANSWERS)
def test_null_means_absent(obeying: Live, endpoint: str) -> None:
    needed = set(BASE[endpoint]) - {"seed"}
    with obeying.http() as http:
        for name in set(get_type_hints(PACKAGE[endpoint])) - needed:
            response = http.post(URLS[endpoint], json={"model": MODEL} | BASE[endpoint] | {name: None})
            assert response.status_code == 200, (name, response.text)


def test_the_table_is_that_of_the_schemas() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run: python -m tests.server.field_tables"


WRONG: tuple[Any, ...] = (None, True, -1, 2**70, "x\x00", [None], {"": None})


@pytest.mark.parametrize("endpoint", ANSWERS)
def test_wrong_types_in_every_field_are_no_fault_of_ours(obeying: Live, endpoint: str) -> None:
    """Deep ones too: each value of each example is replaced by each wrong one."""
    examples = [with_it for _, with_it in (WORKS[endpoint] | NO_EFFECT[endpoint]).values()]
    tried = set()
    with obeying.http() as http:
        for fields in (BASE[endpoint], *examples, *REFUSED[endpoint].values()):
            for changed in replaced(fields):
                if (key := repr(changed)) not in tried:
                    tried.add(key)
                    response = http.post(URLS[endpoint], json=BASE[endpoint] | changed)
                    assert response.status_code in (200, 400, 404), (changed, response.text)
    assert len(tried) > 200


def replaced(value: Any) -> Iterator[Any]:
    """Copies of ``value`` in which one thing inside is a wrong one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        for other in (*WRONG, *replaced(one)):
            copy: Any = value.copy()
            copy[key] = other
            yield copy
