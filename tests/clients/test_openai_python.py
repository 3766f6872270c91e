"""The official Python client's helpers, which read every answer into types of theirs or ours."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.http.conftest import LiveServer

pytestmark = pytest.mark.network  # the first build fetches the language model

MODEL = "specvlm-demo"
SETTINGS: dict[str, Any] = {"model": MODEL, "temperature": 0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Describe a square."}], "max_tokens": 80}
FLAT: dict[str, Any] = {"input": "Describe a square.", "max_output_tokens": 80}


class Shape(pydantic.BaseModel):
    kind: Literal["circle", "square", "triangle"]
    sides: int = pydantic.Field(ge=0, le=4)


@pytest.fixture
def client(demo_server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=demo_server.base_url, api_key="unused", max_retries=0)


def test_parse_gives_an_object_of_ours(client: openai.OpenAI) -> None:
    for parse in (client.chat.completions.parse, client.beta.chat.completions.parse):
        answer = parse(**SETTINGS, **CHAT, response_format=Shape)
        assert isinstance(answer.choices[0].message.parsed, Shape)
    assert isinstance(client.responses.parse(**SETTINGS, **FLAT, text_format=Shape).output_parsed, Shape)


def test_a_parsed_answer_is_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**SETTINGS, **CHAT, response_format=Shape) as stream:
        kinds = {event.type for event in stream}
        chat = stream.get_final_completion()
    assert kinds >= {"chunk", "content.delta", "content.done"}
    with client.responses.stream(**SETTINGS, **FLAT, text_format=Shape) as stream:
        kinds = {event.type for event in stream}
        response = stream.get_final_response()
    assert kinds >= {"response.created", "response.output_text.delta", "response.completed"}
    assert response.output_parsed == chat.choices[0].message.parsed != None  # noqa: E711


def test_arguments_become_an_object_of_ours(client: openai.OpenAI) -> None:
    forced: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
    tool = openai.pydantic_function_tool(Shape)
    chat = client.chat.completions.parse(**SETTINGS, **CHAT, **forced, tools=[tool])
    (call,) = chat.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Shape)
    response = client.responses.parse(**SETTINGS, **FLAT, **forced, tools=[tool])
    (item,) = response.output
    assert item.type == "function_call"
    assert isinstance(item.parsed_arguments, Shape)


def test_a_tools_answer_goes_back_by_responses(client: openai.OpenAI) -> None:
    flat = {"type": "function", **openai.pydantic_function_tool(Shape)["function"]}
    asked: dict[str, Any] = SETTINGS | {"tools": [flat], "max_output_tokens": 40}
    with client.responses.stream(**asked, input=FLAT["input"], tool_choice="required") as stream:
        kinds = [event.type for event in stream]
        call = stream.get_final_response().output[0]
    assert "response.function_call_arguments.delta" in kinds
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Drawn."}
    history: Any = [{"role": "user", "content": FLAT["input"]}, call, result]
    after = client.responses.create(**asked, input=history, tool_choice="none")
    assert after.output_text


async def test_asynchronous_streams(demo_server: LiveServer) -> None:
    async with openai.AsyncOpenAI(base_url=demo_server.base_url, api_key="x", max_retries=0) as client:
        hello: Any = [{"role": "user", "content": 'Say "Hello".'}]
        chunks = await client.chat.completions.create(**SETTINGS, messages=hello, max_tokens=20, stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in chunks]) == "Hello."
        events = await client.responses.create(
            **SETTINGS, input='Say "Hello".', max_output_tokens=20, stream=True
        )
        assert "".join([e.delta async for e in events if e.type == "response.output_text.delta"]) == "Hello."


def test_completions_of_several_prompts_are_streamed(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = SETTINGS | {"prompt": ["One, two,", "Red, green,"], "max_tokens": 6}
    whole = client.completions.create(**asked)
    texts = dict.fromkeys(range(2), "")
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [choice.text for choice in whole.choices]
    assert all(texts.values())


def test_a_cut_answer_and_a_refusal_are_errors_of_its_kinds(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**SETTINGS, **CHAT | {"max_tokens": 4}, response_format=Shape)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=CHAT["messages"])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**SETTINGS, **FLAT | {"max_output_tokens": -1})
    assert client.models.retrieve(MODEL).id == MODEL
