"""For every field an example, as what a request has without it and with it; by endpoint and path."""

from __future__ import annotations

from typing import Any

from server.schemas.responses import LOGPROBS
from tests.server.field_examples_chat import CHAT, CHAT_NO_EFFECT, CHAT_REFUSED
from tests.server.field_examples_common import (
    BREAKPOINT,
    CACHE_HINTS,
    COMMON,
    NOT_OBFUSCATED,
    OLDER,
    PICTURES,
    VLLM_REFUSED,
    Example,
    Json,
    alone,
    inside,
)

BASE: dict[str, Json] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "seed": 0},
    "completions": {"prompt": "Hi", "seed": 0},
    "responses": {"input": "Hi", "seed": 0},
}

COMPLETIONS = {
    **COMMON,
    **OLDER,
    **alone(echo=True, logprobs=1, prompt="Ho"),
}

TOLD: Json = {"type": "message", "role": "user", "content": "Hi"}


def given(*items: Json) -> Json:
    return {"input": list(items)}


def with_parts(*parts: Json, role: str = "user") -> Json:
    return given({"role": role, "content": list(parts)})


def call_item(**fields: Any) -> Json:
    return {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}", **fields}


def output_item(**fields: Any) -> Json:
    return {"type": "function_call_output", "call_id": "1", "output": "x", **fields}


INPUT_PICTURE = {"type": "input_image", "image_url": "color:red"}
INPUT_TEXT = {"type": "input_text", "text": "Hi"}
OUTPUT_TEXT = {"type": "output_text", "text": "Hi"}
FLAT = [{"type": "function", "name": name} for name in "fg"]

RESPONSES = {
    **COMMON,
    **PICTURES,
    **alone(
        include=[LOGPROBS],
        input="Ho",
        instructions="Be brief.",
        max_output_tokens=3,
        metadata={"a": "b"},
        text={"format": {"type": "json_object"}},
        tools=FLAT,
        top_logprobs=2,
    ),
    **inside("text", {}, format={"format": {"type": "json_object"}}),
    "tool_choice": ({"tools": FLAT}, {"tools": FLAT, "tool_choice": "required"}),
    "parallel_tool_calls": ({"tools": FLAT}, {"tools": FLAT, "parallel_tool_calls": False}),
    "input[].role": (given(TOLD), given({**TOLD, "role": "system"})),
    "input[].content": (given(TOLD), given({**TOLD, "content": "Ho"})),
    "input[].content[].text": (with_parts(INPUT_TEXT), with_parts({**INPUT_TEXT, "text": "Ho"})),
    "input[].content[].image_url": (
        with_parts(INPUT_PICTURE),
        with_parts({**INPUT_PICTURE, "image_url": "color:blue"}),
    ),
    "input[].content[].detail": (
        with_parts(INPUT_PICTURE),
        with_parts({**INPUT_PICTURE, "detail": "low"}),
    ),
    "input[].content[].refusal": (
        with_parts({"type": "refusal", "refusal": "no"}, role="assistant"),
        with_parts({"type": "refusal", "refusal": "never"}, role="assistant"),
    ),
    "input[].call_id": (given(TOLD, call_item()), given(TOLD, call_item(call_id="2"))),
    "input[].name": (given(TOLD, call_item()), given(TOLD, call_item(name="g"))),
    "input[].arguments": (given(TOLD, call_item()), given(TOLD, call_item(arguments='{"a": 1}'))),
    "input[].output": (
        given(TOLD, call_item(), output_item()),
        given(TOLD, call_item(), output_item(output="y")),
    ),
    "input[].output[].text": (
        given(TOLD, call_item(), output_item(output=[INPUT_TEXT])),
        given(TOLD, call_item(), output_item(output=[{**INPUT_TEXT, "text": "Ho"}])),
    ),
}

WORKS = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES}

NO_EFFECT: dict[str, dict[str, Example]] = {
    "chat": CHAT_NO_EFFECT,
    "completions": {**NOT_OBFUSCATED, **alone(user="u")},
    "responses": {
        **CACHE_HINTS,
        **NOT_OBFUSCATED,
        **alone(max_tool_calls=3, reasoning={"effort": "high", "summary": "auto"}, truncation="auto"),
        "text.verbosity": ({"text": {}}, {"text": {"verbosity": "low"}}),
        "stream_options": ({"stream": True}, {"stream": True, "stream_options": {}}),
        "input[].id": (given(TOLD), given({**TOLD, "id": "msg_1"})),
        "input[].async": (given(TOLD, call_item()), given(TOLD, call_item() | {"async": True})),
        "input[].caller": (given(TOLD, call_item()), given(TOLD, call_item(caller={"type": "direct"}))),
        "input[].namespace": (given(TOLD, call_item()), given(TOLD, call_item(namespace="n"))),
        "input[].status": (given(TOLD), given({**TOLD, "status": "completed"})),
        "input[].phase": (given(TOLD), given({**TOLD, "phase": "commentary"})),
        "input[].content[].prompt_cache_breakpoint": (
            with_parts(INPUT_TEXT),
            with_parts({**INPUT_TEXT, **BREAKPOINT}),
        ),
        "input[].output[].prompt_cache_breakpoint": (
            given(TOLD, call_item(), output_item(output=[INPUT_TEXT])),
            given(TOLD, call_item(), output_item(output=[{**INPUT_TEXT, **BREAKPOINT}])),
        ),
        "input[].content[].annotations": (
            with_parts(OUTPUT_TEXT, role="assistant"),
            with_parts({**OUTPUT_TEXT, "annotations": [{}]}, role="assistant"),
        ),
        "input[].content[].logprobs": (
            with_parts(OUTPUT_TEXT, role="assistant"),
            with_parts({**OUTPUT_TEXT, "logprobs": [{}]}, role="assistant"),
        ),
    },
}

REFUSED: dict[str, dict[str, Json]] = {
    "chat": CHAT_REFUSED,
    "completions": {**VLLM_REFUSED, "best_of": {"best_of": 2}, "suffix": {"suffix": "x"}},
    "responses": {
        "access_programs": {"access_programs": {"cyber": "standard"}},
        "background": {"background": True},
        "background_options": {"background_options": {"completion_window": "2h"}},
        "context_management": {"context_management": [{"type": "compaction"}]},
        "conversation": {"conversation": "conv_1"},
        "image": {"image": {"context_compression": "auto"}},
        "moderation": {"moderation": {"model": "m"}},
        "previous_response_id": {"previous_response_id": "resp_1"},
        "prompt": {"prompt": {"id": "p"}},
        "store": {"store": True},
        "input[].content[].file_id": with_parts({**INPUT_PICTURE, "file_id": "f"}),
    },
}

TESTED = {
    "add_special_tokens": "tests/server/test_completions.py::test_texts_begin_as_the_tokenizer_would",
    "response_format.json_schema.strict": "tests/server/test_tools.py::test_formats",
}
"""Fields that work and whose effect a test of their own shows."""
