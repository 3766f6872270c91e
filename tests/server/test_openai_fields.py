"""Every field that the ``openai`` package can send is accepted or refused by name; new ones are noticed."""

from __future__ import annotations

from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types.chat import completion_create_params as params
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam

from server.schemas.base import NO_EFFECT, Refused
from server.schemas.chat import ChatRequest
from server.schemas.generation import StreamOptions
from tests.server.conftest import MODEL

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
OPENAI_FIELDS = set(get_type_hints(params.CompletionCreateParamsNonStreaming))

HARMLESS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "user": "u",
}
UNBUILT: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "reasoning_effort": "high",
    "verbosity": "low",
    "web_search_options": {},
}


def test_every_field_of_the_package_is_known() -> None:
    assert set(ChatRequest.model_fields) >= OPENAI_FIELDS
    assert set(StreamOptions.model_fields) >= set(get_type_hints(ChatCompletionStreamOptionsParam))


REFUSED = {
    name: mark.unless
    for name, field in ChatRequest.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Refused)
}


def test_the_tables_are_complete() -> None:
    marks = {name: field.metadata for name, field in ChatRequest.model_fields.items()}
    assert {name for name, own in marks.items() if NO_EFFECT in own} == set(HARMLESS)
    assert set(REFUSED) == set(UNBUILT)
    assert set(HARMLESS) | set(UNBUILT) <= OPENAI_FIELDS


@pytest.mark.parametrize("field", HARMLESS)
def test_fields_without_effect_are_accepted(client: openai.OpenAI, field: str) -> None:
    for value in (HARMLESS[field], None):
        answer = client.chat.completions.create(**VALID, **{field: value})
        assert answer.choices[0].message.content == "Hello, world!"


@pytest.mark.parametrize("field", UNBUILT)
def test_fields_that_are_not_built_are_refused_by_name(client: openai.OpenAI, field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**VALID, **{field: UNBUILT[field]})
    assert caught.value.param == field
    assert caught.value.code == "unsupported_parameter"


@pytest.mark.parametrize("field", UNBUILT)
def test_values_that_ask_for_nothing_are_accepted(http: httpx.Client, field: str) -> None:
    for value in REFUSED[field]:
        assert http.post(CHAT, json=VALID | {field: value}).status_code == 200


@pytest.mark.parametrize(
    "field",
    sorted(OPENAI_FIELDS - {"messages", "model", "stream", "stream_options"}),
)
def test_null_means_absent(http: httpx.Client, field: str) -> None:
    assert http.post(CHAT, json=VALID | {field: None}).status_code == 200
