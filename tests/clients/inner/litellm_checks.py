"""litellm by its ways to a server like ours: ``hosted_vllm/NAME``, and ``openai/NAME`` for responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import litellm
import pydantic
import pytest

HELLO = [{"role": "user", "content": 'Say "Hello".'}]
TOOL = {
    "type": "function",
    "function": {
        "name": "count",
        "description": "Count the sides.",
        "parameters": {
            "type": "object",
            "properties": {"sides": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["sides"],
        },
    },
}


class Shape(pydantic.BaseModel):
    kind: Literal["circle", "square", "triangle"]
    sides: int = pydantic.Field(ge=0, le=4)


@pytest.fixture
def asked(base_url: str) -> dict[str, Any]:
    return {
        "model": "hosted_vllm/specvlm-demo",
        "api_base": base_url,
        "api_key": "unused",
        "messages": HELLO,
        "temperature": 0,
        "max_tokens": 40,
        "num_retries": 0,
    }


@pytest.fixture
def chat(asked: dict[str, Any]) -> Callable[..., Any]:
    return lambda **options: litellm.completion(**asked | options)


def test_chat(chat: Callable[..., Any]) -> None:
    answer = chat()
    assert answer.choices[0].message.content == "Hello."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens > 0


async def test_chat_async(asked: dict[str, Any]) -> None:
    answer = await litellm.acompletion(**asked)
    assert answer.choices[0].message.content == "Hello."


def test_stream(chat: Callable[..., Any]) -> None:
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello."
    assert chunks[-1].usage.completion_tokens > 0


def test_picture(chat: Callable[..., Any], picture: str) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": "What is the title of the chart?"},
    ]
    answer = chat(messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content
    assert answer.usage.prompt_tokens > chat().usage.prompt_tokens + 16


def test_tool_and_its_answer(chat: Callable[..., Any]) -> None:
    message = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "count"
    assert json.loads(call.function.arguments)["sides"] in range(10)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Four sides."}
    after = chat(messages=[*HELLO, message.model_dump(), result], tools=[TOOL], tool_choice="none")
    assert after.choices[0].message.content
    assert not after.choices[0].message.tool_calls


def test_tool_streamed(chat: Callable[..., Any]) -> None:
    options = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "count"}}}
    whole = litellm.stream_chunk_builder(list(chat(**options, stream=True)))
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "count"
    assert json.loads(call.function.arguments)["sides"] in range(10)


def test_pydantic_response_format(chat: Callable[..., Any]) -> None:
    text = chat(response_format=Shape).choices[0].message.content
    assert Shape.model_validate_json(text)


def test_logprobs_and_several_answers(chat: Callable[..., Any]) -> None:
    answer = chat(n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello.", "Hello."]
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_text_completion(asked: dict[str, Any]) -> None:
    del asked["messages"]
    answer = litellm.text_completion(**asked | {"prompt": "One, two,", "max_tokens": 4})
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize("model", ["openai/specvlm-demo", "hosted_vllm/specvlm-demo"])
def test_responses(asked: dict[str, Any], model: str) -> None:
    """Of ours with ``openai/``; with ``hosted_vllm/`` as litellm sees fit."""
    where = {key: asked[key] for key in ("api_base", "api_key", "temperature")}
    answer = litellm.responses(model=model, input='Say "Hello".', max_output_tokens=40, **where)
    assert answer.output[-1].content[0].text == "Hello."
    events = litellm.responses(model=model, input='Say "Hello".', max_output_tokens=40, stream=True, **where)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello."


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": 9}, litellm.BadRequestError),
        ({"model": "hosted_vllm/another"}, litellm.NotFoundError),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, litellm.ContextWindowExceededError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_of_its_kinds(
    chat: Callable[..., Any], options: dict[str, Any], error: type[Exception], stream: bool
) -> None:
    with pytest.raises(error):
        chat(**options, stream=stream)
