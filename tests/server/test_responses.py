"""``/v1/responses``, as the ``openai`` package sees it."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall
from openai.types.responses import response_create_params as params

from engine.client import EngineDeadError, RequestRejectedError
from server.schemas.responses import ResponsesRequest
from tests.server.conftest import MODEL, Live
from tests.server.fakes import IMAGE_TOKENS, MAX_MODEL_LEN

URL = "/v1/responses"
SAID = "Hello, world!"
PICTURE = {"type": "input_image", "image_url": "color:red", "detail": "auto"}


def ask(client: openai.OpenAI, input: Any = "Hi", **fields: Any) -> Any:
    return client.responses.create(model=MODEL, input=input, **fields)


def sent(live: Live) -> str:
    """The newest prompt, as the fake template writes it."""
    return live.engine.processor.decode(live.engine.requests[-1].prompt.token_ids, skip_special_tokens=False)


def refused(http: httpx.Client, param: str | None, code: str | None = None, **fields: Any) -> str:
    response = http.post(URL, json={"model": MODEL, "input": "Hi"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert code is None or error["code"] == code
    return str(error["message"])


def test_every_field_of_the_package_is_known() -> None:
    known = set(ResponsesRequest.model_fields)
    assert known >= set(get_type_hints(params.ResponseCreateParamsNonStreaming))


def test_whole_answer(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert (answer.object, answer.status, answer.model) == ("response", "completed", MODEL)
    assert answer.id.startswith("resp_")
    assert answer.output_text == SAID
    [message] = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert sent(live) == "system:Be brief.user:Hi"
    assert answer.usage.input_tokens == len("system:Be brief.user:Hi")
    assert answer.usage.output_tokens == len(SAID) + 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.instructions, answer.metadata, answer.temperature) == ("Be brief.", {"a": "b"}, 0.5)
    assert answer.error is None
    assert answer.incomplete_details is None


def test_a_conversation_with_pictures(live: Live, client: openai.OpenAI) -> None:
    answer = ask(
        client,
        [
            {"role": "developer", "content": "D"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Q"}, PICTURE]},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "R"},
        ],
    )
    assert sent(live).replace("<image>", "") == "system:Duser:Qassistant:Auser:R"
    assert live.media.loaded[-1] == "color:red"
    assert answer.usage.input_tokens_details.image_tokens == IMAGE_TOKENS


def test_an_answer_can_be_sent_back(live: Live, client: openai.OpenAI) -> None:
    first = ask(client)
    history = [{"role": "user", "content": "Hi"}, *first.output, {"role": "user", "content": "And?"}]
    ask(client, history)
    assert sent(live) == f"user:Hiassistant:{SAID}user:And?"


@pytest.mark.parametrize("by_alias", [True, False])
def test_a_call_can_be_sent_back_as_the_package_writes_it(
    live: Live, client: openai.OpenAI, by_alias: bool
) -> None:
    call = ResponseFunctionToolCall(arguments="{}", call_id="c", name="f", type="function_call")
    output = {"type": "function_call_output", "call_id": "c", "output": "4", "name": "f", "namespace": None}
    ask(client, [user(), call.model_dump(by_alias=by_alias), output | {"caller": None}, user()])
    told, _ = live.engine.processor.applied
    assert [message.role for message in told] == ["user", "assistant", "tool", "user"]


def test_max_output_tokens(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, max_output_tokens=4)
    assert (answer.status, answer.output_text) == ("incomplete", "Hell")
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[0].status == "incomplete"


@pytest.mark.parametrize("step", [1, 4, 100])
def test_a_stream_tells_the_whole_answer(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says("naïve 👩‍🚀!", step=step)
    events = list(ask(client, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        *("response.created", "response.in_progress"),
        *("response.output_item.added", "response.content_part.added"),
    ]
    assert kinds[-4:] == [
        *("response.output_text.done", "response.content_part.done"),
        *("response.output_item.done", "response.completed"),
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == "naïve 👩‍🚀!" == events[-4].text
    whole = ask(client)
    told = events[-1].response
    assert told.output_text == whole.output_text
    assert told.usage == whole.usage
    assert {event.item_id for event in events[3:-2]} == {told.output[0].id}
    assert events[0].response.status == "in_progress"
    assert events[0].response.output == []


def test_the_stream_helper_of_the_package(live: Live, client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == SAID


def test_an_answer_without_text_is_an_empty_message(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("")
    answer = ask(client)
    assert (answer.status, answer.output_text, len(answer.output)) == ("completed", "", 1)


def test_a_stream_that_is_cut_ends_incomplete(client: openai.OpenAI) -> None:
    *_, last = ask(client, stream=True, max_output_tokens=4)
    assert (last.type, last.response.output_text) == ("response.incomplete", "Hell")


def test_logprobs(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, top_logprobs=2, include=["message.output_text.logprobs"])
    told = answer.output[0].content[0].logprobs
    assert "".join(one.token for one in told) == SAID
    assert all(len(one.top_logprobs) == 2 for one in told)
    assert answer.top_logprobs == 2
    assert ask(client).output[0].content[0].logprobs == []
    deltas = [
        event for event in ask(client, stream=True, top_logprobs=1) if event.type.endswith("text.delta")
    ]
    assert [one.token for event in deltas for one in event.logprobs] == list(SAID)


def test_fields_beyond_the_schema_reach_the_engine(live: Live, client: openai.OpenAI) -> None:
    extra = {"top_k": 7, "seed": 3, "stop": ["wor"], "cache_salt": "s", "min_p": 0.1}
    answer = ask(client, top_p=0.5, extra_body=extra)
    assert answer.output_text == "Hello, "
    [request] = live.engine.requests
    drawn = request.sampling
    assert (drawn.top_k, drawn.seed, drawn.min_p, drawn.top_p) == (7, 3, 0.1, 0.5)
    assert request.cache_salt == "s"


def test_speculation_is_told_at_the_end(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(SAID, step=4, drafts=True)
    fields = {"extra_body": {"speculative": {"trace": True}}}
    whole = ask(client, **fields)
    report = whole.model_extra["metrics"]["speculative_decoding"]
    assert report["num_spec_steps"] == len(whole.model_extra["speculative_trace"]) > 1
    *before, last = ask(client, stream=True, **fields)
    assert last.response.model_extra["metrics"]["speculative_decoding"] == report
    assert "metrics" not in before[0].response.model_extra


UNBUILT: dict[str, Any] = {
    "access_programs": {"cyber": "standard"},
    "background": True,
    "background_options": {"completion_window": "2h"},
    "context_management": [{"type": "compaction"}],
    "conversation": "conv_1",
    "image": {"context_compression": "auto"},
    "moderation": {"model": "m"},
    "previous_response_id": "resp_1",
    "prompt": {"id": "p"},
    "store": True,
}


@pytest.mark.parametrize("field", UNBUILT)
def test_what_is_not_built_is_refused_by_name(http: httpx.Client, field: str) -> None:
    refused(http, field, "unsupported_parameter", **{field: UNBUILT[field]})


def test_complaints_use_the_names_of_this_address(live: Live, http: httpx.Client) -> None:
    refused(http, "tools[1]", "unsupported_parameter", tools=[FUNCTION, {"type": "web_search"}])
    refused(http, "input", "context_length_exceeded", input="x" * MAX_MODEL_LEN)
    refused(http, "input", "invalid_image_url", input=[user({**PICTURE, "image_url": "nothing"})])
    refused(http, "input", input=[])
    for role in ("assistant", "system", "developer"):
        words = {"type": "output_text" if role == "assistant" else "input_text", "text": "x"}
        refused(http, "input[1].content[1]", input=[user(), {"role": role, "content": [words, PICTURE]}])
    refused(http, "input[0].content[0]", input=[user({"type": "refusal", "refusal": "no"})])
    refused(http, "input[0].content[0].file_id", input=[user({**PICTURE, "file_id": "f"})])
    refused(http, "input[1]", input=[user(), {"type": "item_reference", "id": "x"}])
    refused(http, "input[0].content[0]", input=[user({"type": "input_file", "file_id": "f"})])
    refused(http, "max_output_tokens", max_output_tokens=0)
    refused(http, "max_tokens", "unknown_parameter", max_tokens=5)
    refused(http, "metadata.a", metadata={"a": 1})
    nested = {"type": "function", "function": {"name": "f"}}
    told = refused(http, "tools[0].name", "missing_parameter", tools=[nested])
    assert told == "Missing parameter: 'tools[0].name'."
    refused(http, "tools[1].parameters", tools=[FUNCTION, {**FUNCTION, "parameters": {"type": "array"}}])
    refused(http, "tools[0].function", "unknown_parameter", tools=[FUNCTION | nested])
    refused(http, "tool_choice.name", "missing_parameter", tools=[FUNCTION], tool_choice=nested)
    refused(http, "tool_choice", tools=[FUNCTION], tool_choice="f")
    refused(http, "tool_choice", tools=[FUNCTION], tool_choice={"type": "function", "name": "g"})
    some = {"type": "allowed_tools", "mode": "auto", "tools": [nested]}
    refused(http, "tool_choice.tools[0].name", "missing_parameter", tools=[FUNCTION], tool_choice=some)
    refused(http, "tool_choice.mode", tools=[FUNCTION], tool_choice={**some, "mode": "x", "tools": []})
    form = {"type": "json_schema", "name": "n", "schema": 5}
    refused(http, "text.format.schema", text={"format": form})
    assert live.engine.requests == []


FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def call_items(events: list[Any]) -> list[tuple[str, str]]:
    return [(item.name, item.arguments) for item in events if item.type == "function_call"]


CALLS = (
    'One moment.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
)
CALLED = [("f", '{"x": "é"}'), ("g", "{}")]
FUNCTIONS = [FUNCTION, {**FUNCTION, "name": "g", "strict": False}]


@pytest.mark.parametrize("step", [1, 7, 500])
def test_calls_of_functions_are_items(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says(CALLS, step=step)
    answer = ask(client, tools=FUNCTIONS)
    assert [item.type for item in answer.output] == ["message", "function_call", "function_call"]
    assert call_items(answer.output) == CALLED
    assert (answer.status, answer.output_text) == ("completed", "One moment.")
    assert len({item.id for item in answer.output}) == 3
    events = list(ask(client, tools=FUNCTIONS, stream=True))
    assert call_items(events[-1].response.output) == CALLED
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [(e.name, e.arguments) for e in done] == CALLED
    for index, (_, arguments) in enumerate(CALLED, start=1):
        deltas = [e.delta for e in events if e.type.endswith("arguments.delta") and e.output_index == index]
        assert "".join(deltas) == arguments
    ended = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.id for item in ended] == [item.id for item in events[-1].response.output]
    with client.responses.stream(model=MODEL, input="Hi", tools=FUNCTIONS) as stream:
        assert call_items(stream.get_final_response().output) == CALLED


def test_a_call_that_a_stop_string_cut_is_incomplete(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(CALLS)
    items = ask(client, tools=FUNCTIONS, extra_body={"stop": "x"}).output
    assert [(item.type, item.status) for item in items] == [
        ("message", "completed"),
        ("function_call", "incomplete"),
    ]


def test_some_functions_may_be_called(live: Live, client: openai.OpenAI) -> None:
    named = [{"type": "function", "name": "g"}]
    ask(client, tools=FUNCTIONS, tool_choice={"type": "allowed_tools", "mode": "required", "tools": named})
    grammar = live.engine.requests[-1].sampling.grammar
    assert grammar is not None
    assert '\\"g\\"' in grammar
    assert '\\"f\\"' not in grammar


def test_calls_and_what_they_gave_can_be_sent_back(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(CALLS)
    answer = ask(client, tools=FUNCTIONS)
    gave = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"of {item.name}"}
        for item in answer.output
        if item.type == "function_call"
    ]
    again = [{"role": "user", "content": "Hi"}, *answer.output, *gave]
    ask(client, again, tools=FUNCTIONS)
    prompt = sent(live)
    assert prompt.index("One moment.") < prompt.index("of f") < prompt.index("of g")


def test_a_format_is_told_to_the_engine(live: Live, client: openai.OpenAI, http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    ask(client, text={"format": form})
    assert '"integer"' in (live.engine.requests[-1].sampling.grammar or "")
    live.engine.answer = live.engine.rejects(RequestRejectedError("invalid_grammar", "no such keyword"))
    message = refused(http, "text.format", "invalid_grammar", text={"format": form})
    assert message == "no such keyword"
    refused(http, "tool_choice", tool_choice={"type": "function", "name": "h"}, tools=FUNCTIONS)


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts) or "x"}


def test_an_error_is_a_status_before_the_first_token_and_an_event_after_it(
    live: Live, client: openai.OpenAI
) -> None:
    live.engine.answer = live.engine.rejects(EngineDeadError("secret"))
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, stream=True)
    assert caught.value.code == "engine_dead"
    live.engine.answer = live.engine.rejects(EngineDeadError("secret"), after="Hel")
    *_, last = ask(client, stream=True)
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "engine_dead")
    assert "secret" not in last.response.error.message


def test_request_ids(http: httpx.Client) -> None:
    response = http.post(URL, json={"input": "Hi"}, headers={"X-Request-Id": "abc"})
    assert (response.headers["X-Request-Id"], response.json()["id"]) == ("abc", "resp_abc")


@pytest.mark.parametrize("stream", [True, False])
def test_scores_of_a_response_are_bounded_as_its_end_tells_all_of_them(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr("server.generation.MAX_KEPT", 10)
    include = ["message.output_text.logprobs"]
    body = {"model": MODEL, "input": "Hi", "top_logprobs": 5, "include": include, "stream": stream}
    assert "too_many_logprobs" in http.post("/v1/responses", json=body).text
    assert "too_many_logprobs" not in http.post("/v1/responses", json=body | {"max_output_tokens": 1}).text
