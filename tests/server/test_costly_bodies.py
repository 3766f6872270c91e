"""Bodies that are cheap to send: what is wrong with them is found out as cheaply."""

from __future__ import annotations

from typing import Any, NoReturn

import httpx
import pytest
from fastapi.exceptions import RequestValidationError

from server.errors import ApiError, validation_error
from server.response_input import messages
from server.schemas.responses import InputMessage, ResponsesRequest
from tests.server.conftest import MODEL, Live
from tests.server.fakes import MAX_MODEL_LEN
from tests.server.test_errors import check_shape

MANY = 50_000
USER = {"role": "user", "content": "Hi"}
FIELDS = {f"x{number}": -1 for number in range(MANY)}
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
COSTLY: list[tuple[str, dict[str, Any]]] = [
    (CHAT, FIELDS),
    (CHAT, {"messages": [1] * 4000}),
    (CHAT, {"messages": [{"role": "user", "content": [1] * MANY}]}),
    (CHAT, {"messages": [USER | FIELDS] * 3}),
    (CHAT, {"messages": [{"role": "assistant", "annotations": [1] * MANY}]}),
    (CHAT, {"messages": [USER], "logit_bias": FIELDS}),
    (CHAT, {"messages": [USER], "chat_template_kwargs": {name: [] for name in FIELDS}}),
    (CHAT, {"messages": [USER], "speculative": FIELDS}),
    (CHAT, {"messages": [USER], "functions": [1] * MANY}),
    (COMPLETIONS, {"prompt": [-1] * MANY}),
    (COMPLETIONS, {"prompt": [[-1] * MANY]}),
    (COMPLETIONS, {"prompt": ["x", *[1] * 1000]}),
    (RESPONSES, {"input": [{"role": "user", "content": [1] * MANY}]}),
    (RESPONSES, {"input": "x", "metadata": FIELDS}),
    (RESPONSES, {"input": "x", "tools": [1] * MANY}),
    (RESPONSES, {"input": "x", "include": [1] * MANY}),
    ("/tokenize", {"messages": [{"role": "system", "content": [1] * MANY}]}),
    ("/detokenize", {"tokens": [-1] * MANY}),
]


@pytest.mark.parametrize(("path", "fields"), COSTLY)
def test_few_things_are_said_about_many_mistakes(
    live: Live, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any]
) -> None:
    said: list[int] = []

    def count(error: RequestValidationError) -> ApiError:
        said.append(len(error.errors()))
        return validation_error(error)

    monkeypatch.setattr("server.errors.validation_error", count)
    with live.http() as http:
        check_shape(http.post(path, json={"model": MODEL} | fields), 400)
    assert 0 < said[0] < 10


def test_the_name_of_what_has_too_many_fields(http: httpx.Client) -> None:
    error = check_shape(http.post(CHAT, json={"messages": [USER | FIELDS]}), 400, "request_too_large")
    assert error["param"] == "messages[0]"
    error = check_shape(http.post(CHAT, json={"messages": [USER]} | FIELDS), 400, "request_too_large")
    assert error["param"] is None


PART, CALL = (
    {"type": "text", "text": ""},
    {"id": "c", "type": "function", "function": {"name": "f", "arguments": ""}},
)


@pytest.mark.parametrize(
    ("path", "field", "messages"),
    [
        (CHAT, "messages", [{"role": "user", "content": [PART] * 5000}] * 2),
        (CHAT, "messages", [{"role": "assistant", "tool_calls": [CALL] * 100}] * 100),
        ("/tokenize", "messages", [{"role": "system", "content": [PART] * 10_000}]),
        (RESPONSES, "input", [{"role": "user", "content": [{"type": "input_text", "text": ""}] * 10_000}]),
        (RESPONSES, "input", [{"type": "function_call_output", "call_id": "c", "output": [PART] * 10_000}]),
    ],
)
def test_parts_of_a_conversation_are_counted(
    live: Live, http: httpx.Client, path: str, field: str, messages: list[Any]
) -> None:
    """Of all its messages together: each takes its microseconds of the event loop."""
    live.engine.processor.applied = ([], None)
    error = check_shape(http.post(path, json={"model": MODEL, field: messages}), 400)
    assert error["param"] == field
    assert "10000 parts and calls; at most 8192 are allowed" in error["message"]
    assert live.engine.processor.applied == ([], None)


def test_digits_of_a_schema_count(http: httpx.Client) -> None:
    """A template prints them."""
    schema = {"type": "object", "enum": [10**4200] * 30}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    response = http.post(CHAT, json={"messages": [{"role": "user", "content": "x"}], "tools": [tool]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools[0].function.parameters"


def test_the_first_prompt_that_is_too_long_is_the_last_that_is_read(
    live: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = live.engine.processor.encode

    def counted(text: str, *rest: Any) -> list[int]:
        asked.append(text)
        return real(text, *rest)

    monkeypatch.setattr(live.engine.processor, "encode", counted)
    response = http.post("/v1/completions", json={"prompt": ["x" * (MAX_MODEL_LEN + 1)] * 5})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert len(asked) == 1


def test_a_type_that_is_no_text_is_not_told_at_length(http: httpx.Client) -> None:
    response = http.post("/v1/responses", json={"input": [{"type": [1] * 1000}]})
    assert response.status_code == 400
    assert len(response.text) < 500


def test_a_text_is_not_read_character_by_character() -> None:
    class Whole(str):
        __slots__ = ()

        def __iter__(self) -> NoReturn:
            raise AssertionError("a megabyte takes a third of a second")

    said = [InputMessage.model_construct(role="user", content=Whole("Hi"))]
    told = messages(ResponsesRequest.model_construct(input=said))
    assert told == [{"role": "user", "content": "Hi"}]
