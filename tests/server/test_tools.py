"""Tools and formats over HTTP: what clients read, what the engine is told, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest

from engine.client import RequestRejectedError
from tests.server.conftest import MODEL, Live

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]


def named(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


CALLS = (
    'One moment.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
CALL = CALLS[: CALLS.index("\n<tool_call>", 20)].removeprefix("One moment.\n")


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": HI, "tools": TOOLS} | fields)


def grammar_told(live: Live) -> str | None:
    return live.engine.requests[-1].sampling.grammar


@pytest.mark.parametrize("step", [1, 7, 500])
def test_calls_are_told_apart_from_text(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says(CALLS, step=step)
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    told = [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert told == [("function", "get_weather", '{"city": "Zürich"}'), ("function", "get_time", "{}")]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    assert grammar_told(live) is None, "this model calls by itself"


@pytest.mark.parametrize("step", [1, 7, 500])
def test_calls_are_streamed_as_openai_streams_them(live: Live, client: openai.OpenAI, step: int) -> None:
    """Read by the package's own accumulation, which knows how deltas add up."""
    live.engine.answer = live.engine.says(CALLS, step=step)
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS, n=2) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    for choice in final.choices:
        told = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]
        assert told == [("get_weather", '{"city": "Zürich"}'), ("get_time", "{}")]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    for event in events:
        if event.type == "chunk":
            gained = [call.index for choice in event.chunk.choices for call in choice.delta.tool_calls or ()]
            assert len(set(gained)) == len(gained), "one delta a call and chunk"
    if step == 1:
        deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
        assert len(deltas) > 10, "arguments come while they are written"


def test_an_answer_of_calls_alone_has_no_content(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(CALL)
    assert ask(client).choices[0].message.content is None
    live.engine.answer = live.engine.says(CALL, finish_reason="length")
    assert ask(client, max_tokens=40).choices[0].finish_reason == "length", "a call that was cut is no call"


@pytest.mark.parametrize(
    ("text", "stop", "reason"),
    [
        (CALL, "city", "stop"),
        (CALL, "get", "stop"),
        (CALL, "</tool_call>", "tool_calls"),
        (CALL, "}\n", "tool_calls"),
        (CALLS, "get_time", "stop"),
        (CALL[: CALL.index("city")], "elsewhere", "stop"),
    ],
)
def test_an_answer_whose_last_call_is_cut_does_not_end_in_calls(
    live: Live, client: openai.OpenAI, text: str, stop: str, reason: str
) -> None:
    """Clients run calls for that reason."""
    live.engine.answer = live.engine.says(text, step=3)
    assert ask(client, stop=stop).choices[0].finish_reason == reason
    assert list(ask(client, stop=stop, stream=True))[-1].choices[0].finish_reason == reason


def test_text_stays_text_without_tools(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(CALL)
    for fields in ({"tools": openai.omit}, {"tool_choice": "none"}):
        choice = ask(client, **fields).choices[0]
        assert (choice.message.content, choice.finish_reason) == (CALL, "stop")
        assert choice.message.tool_calls is None


@pytest.mark.parametrize(
    ("fields", "allowed", "forbidden"),
    [
        ({"tool_choice": "required"}, ["get_weather", "get_time"], ["TEXT"]),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, ["get_time"], ["weather"]),
        ({"parallel_tool_calls": False}, ["get_weather", "TEXT"], ["call)*"]),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}}},
            ["get_time", "TEXT"],
            ["weather"],
        ),
    ],
)
def test_what_the_engine_is_told_of_choices(
    live: Live, client: openai.OpenAI, fields: dict[str, Any], allowed: list[str], forbidden: list[str]
) -> None:
    if "allowed_tools" in str(fields):
        fields["tool_choice"]["allowed_tools"]["tools"] = [
            {"type": "function", "function": {"name": "get_time"}}
        ]
    ask(client, **fields)
    grammar = grammar_told(live)
    assert grammar is not None
    assert all(part in grammar for part in allowed)
    assert not any(part in grammar for part in forbidden)


def test_a_strict_function_is_strict(live: Live, client: openai.OpenAI) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    ask(client, tools=[strict])
    assert '"lenient": false' in (grammar_told(live) or "")


def test_tools_and_their_answers_reach_the_template(live: Live, client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    echoed = call | {"index": 0, "function": call["function"] | {"parsed_arguments": None}}
    history = [
        *HI,
        {"role": "assistant", "tool_calls": [echoed], "parsed": None},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {"role": "assistant", "content": "Noon."},
        *HI,
    ]
    ask(client, messages=history, extra_body={"chat_template_kwargs": {"mode": "fast"}})
    messages, arguments = live.engine.processor.applied
    assert messages[1].extra["tool_calls"] == [call]
    assert (messages[2].role, messages[2].content, messages[2].extra) == (
        "tool",
        "12:00",
        {"tool_call_id": "c1"},
    )
    assert arguments is not None
    assert arguments["mode"] == "fast"
    assert [tool["function"]["name"] for tool in arguments["tools"]] == ["get_weather", "get_time"]


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_formats(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says('{"name": "Ann", "age": 41}')
    parsed = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Person)
    assert parsed.choices[0].message.parsed == Person(name="Ann", age=41)
    grammar = grammar_told(live)
    assert grammar is not None
    schema = json.loads(grammar.removeprefix("start: %json "))
    assert schema["required"] == ["name", "age"]
    assert schema["x-guidance"]["lenient"] is False
    for form, constrained in (
        ({"type": "text"}, False),
        ({"type": "json_object"}, True),
        ({"type": "json_schema", "json_schema": {"name": "any"}}, True),
    ):
        ask(client, response_format=form, tools=openai.omit)
        assert (grammar_told(live) is not None) is constrained


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ({"choice": ["yes", "no"]}, 'start: "yes" | "no"'),
        ({"regex": "[a-z]+"}, "start: /[a-z]+/"),
        ({"json": {"type": "integer"}}, '"type": "integer"'),
        ({"json_object": True}, '"type": "object"'),
    ],
)
def test_forms_as_vllm_spells_them(
    live: Live, client: openai.OpenAI, form: dict[str, Any], part: str
) -> None:
    ask(client, tools=openai.omit, extra_body={"structured_outputs": form})
    assert part in (grammar_told(live) or "")


def test_calls_in_the_history_count_as_text(live: Live, http: httpx.Client) -> None:
    long = named("f", arguments="x" * 100_000) | {"id": "c"}
    answer = http.post(CHAT, json={"messages": [*HI, {"role": "assistant", "tool_calls": [long]}, *HI]})
    assert answer.json()["error"]["code"] == "context_length_exceeded"


BIG = {"enum": ["x" * 200_000]}
DEEP: dict[str, Any] = {}
for _ in range(80):
    DEEP = {"not": DEEP}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": schema("string")}, "response_format.json_schema.schema"),
        ({"response_format": schema(BIG)}, "response_format.json_schema.schema"),
        ({"response_format": schema(DEEP)}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "start: A"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "structured_outputs"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}]},
         "tools[0].function.parameters"),
        ({"tools": [named("f", parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [TIME, named("f", parameters={"type": ["array"]})]}, "tools[1].function.parameters"),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tools": [named(f"f{i}", description="x" * 90_000) for i in range(5)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": TOOLS}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [*HI, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{"id": "c"}]}]},
         "messages[1].tool_calls[0].type"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"mode": {"deep": 1}}}, "chat_template_kwargs.mode"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_field(
    live: Live, http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    answer = http.post(CHAT, json={"messages": HI} | fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert live.engine.requests == []


def test_arguments_that_are_no_object_are_refused_with_the_functions_name(http: httpx.Client) -> None:
    for kind in ("string", ["null", 7], None):
        tools = [TIME, named("weather", parameters={"type": kind})]
        message = http.post(CHAT, json={"messages": HI, "tools": tools}).json()["error"]["message"]
        assert "'weather'" in message
        assert "'type' must be 'object'" in message
        assert json.dumps(kind) in message
    assert http.post(CHAT, json={"messages": HI, "tools": [named("f", parameters={})]}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": schema({})}, "response_format"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"tools": TOOLS}, "tools"),
        ({"tools": TOOLS, "response_format": schema({})}, "response_format"),
    ],
)
def test_a_grammar_that_the_engine_refuses_is_a_bad_request(
    live: Live, http: httpx.Client, fields: dict[str, Any], param: str, stream: bool
) -> None:
    refusal = RequestRejectedError("invalid_grammar", "the grammar cannot be used: no")
    live.engine.answer = live.engine.rejects(refusal)
    answer = http.post(CHAT, json={"messages": HI, "stream": stream} | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_grammar")
    assert "no" in error["message"]


@pytest.mark.parametrize("form", [{}, {"response_format": schema({})}])
def test_a_function_that_the_engine_refuses_is_named(
    live: Live, http: httpx.Client, form: dict[str, Any]
) -> None:
    """The engine knows it as a rule of the grammar."""
    live.engine.answer = live.engine.rejects(RequestRejectedError("invalid_grammar", "in 'call_1': no 'not'"))
    answer = http.post(CHAT, json={"messages": HI, "tools": TOOLS, "tool_choice": "required"} | form)
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("tools", "invalid_grammar")
    assert error["message"] == "in the parameters of the function 'get_time': no 'not'"
