"""For every field of ``/v1/chat/completions`` an example."""

from __future__ import annotations

from typing import Any

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

PICTURE: Json = {"type": "image_url", "image_url": {"url": "color:red"}}
VIDEO: Json = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,red,blue"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def messages(base: Json, *more: Json) -> Json:
    return {"messages": [base, *more]}


def said(*parts: Json) -> Json:
    return messages({"role": "user", "content": list(parts)})


def answered(**fields: Any) -> Json:
    return messages({"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, **fields})


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called(call_id: str = "1", **fields: Any) -> Json:
    function = {"name": "f", "arguments": "{}", **fields}
    call = {"id": call_id, "type": "function", "function": function}
    return answered(tool_calls=[call])


def gave(call_id: str) -> Json:
    told = {"role": "tool", "tool_call_id": call_id, "content": "x"}
    return messages(*called()["messages"], told)


def function(**fields: Any) -> Json:
    return {"type": "function", "function": {"name": "f", **fields}}


def form(**fields: Any) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, **fields}}


def allowed(mode: str, *names: str) -> Json:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


BOTH = {"tools": [function(), function(name="g")]}
F, G = ({**BOTH, "tool_choice": {"type": "function", "function": {"name": name}}} for name in "fg")
ALLOWED_F, ALLOWED_G = ({**BOTH, "tool_choice": allowed("required", name)} for name in "fg")

CHAT = {
    **COMMON,
    **PICTURES,
    **OLDER,
    **alone(
        chat_template_kwargs={"mode": "x"},
        logprobs=True,
        max_completion_tokens=3,
        messages=[{"role": "user", "content": "Ho"}],
        response_format={"type": "json_object"},
        tools=[function()],
    ),
    **inside("response_format", {"type": "text"}, json_schema=form()),
    "response_format.json_schema.schema": (
        {"response_format": form()},
        {"response_format": form(schema=SCHEMA)},
    ),
    "tools[].function": ({"tools": [function()]}, {"tools": [function(name="g")]}),
    "tools[].function.name": ({"tools": [function()]}, {"tools": [function(name="g")]}),
    "tools[].function.description": ({"tools": [function()]}, {"tools": [function(description="d")]}),
    "tools[].function.parameters": ({"tools": [function()]}, {"tools": [function(parameters=SCHEMA)]}),
    "tools[].function.strict": (
        {"tools": [function(parameters=SCHEMA)]},
        {"tools": [function(parameters=SCHEMA, strict=True)]},
    ),
    "structured_outputs": ({}, {"structured_outputs": {"json": SCHEMA}}),
    **{
        f"structured_outputs.{kind}": ({}, {"structured_outputs": {kind: value}})
        for kind, value in {"json": SCHEMA, "json_object": True, "regex": "a+", "choice": ["a"]}.items()
    },
    "tool_choice": (BOTH, {**BOTH, "tool_choice": "required"}),
    "tool_choice.function": (F, G),
    "tool_choice.function.name": (F, G),
    "tool_choice.allowed_tools": (ALLOWED_F, ALLOWED_G),
    "tool_choice.allowed_tools.mode": (ALLOWED_F, {**BOTH, "tool_choice": allowed("auto", "f")}),
    "tool_choice.allowed_tools.tools": (ALLOWED_F, {**BOTH, "tool_choice": allowed("required", "f", "g")}),
    "tool_choice.allowed_tools.tools[].function": (ALLOWED_F, ALLOWED_G),
    "tool_choice.allowed_tools.tools[].function.name": (ALLOWED_F, ALLOWED_G),
    "parallel_tool_calls": (
        {**BOTH, "tool_choice": "required"},
        {**BOTH, "tool_choice": "required", "parallel_tool_calls": False},
    ),
    "messages[].role": ({}, messages({"role": "system", "content": "Hi"})),
    "messages[].content": ({}, messages({"role": "user", "content": "Ho"})),
    "messages[].content[].text": ({}, said({"type": "text", "text": "Ho"})),
    "messages[].content[].image_url": ({}, said(PICTURE)),
    "messages[].content[].image_url.url": (
        said(PICTURE),
        said({**PICTURE, "image_url": {"url": "color:blue"}}),
    ),
    "messages[].content[].image_url.detail": (
        said(PICTURE),
        said({**PICTURE, "image_url": {"url": "color:red", "detail": "low"}}),
    ),
    "messages[].content[].video_url": ({}, said(VIDEO)),
    "messages[].content[].video_url.url": (
        said(VIDEO),
        said({**VIDEO, "video_url": {"url": "data:video/jpeg;base64,red,green"}}),
    ),
    "messages[].content[].refusal": (
        answered(content="x"),
        answered(content=[{"type": "refusal", "refusal": "no"}]),
    ),
    "messages[].name": ({}, messages({"role": "user", "content": "Hi", "name": "Ada"})),
    "messages[].refusal": (answered(), answered(refusal="no")),
    "messages[].tool_calls": (answered(), called()),
    "messages[].tool_calls[].id": (called(), called("2")),
    "messages[].tool_calls[].function": (called(), called(name="g")),
    "messages[].tool_calls[].function.name": (called(), called(name="g")),
    "messages[].tool_calls[].function.arguments": (called(), called(arguments='{"a": 1}')),
    "messages[].tool_call_id": (gave("1"), gave("2")),
    "top_logprobs": ({"logprobs": True}, {"logprobs": True, "top_logprobs": 2}),
}

CHAT_NO_EFFECT: dict[str, Example] = {
    **CACHE_HINTS,
    **NOT_OBFUSCATED,
    **alone(
        metadata={"a": "b"},
        prediction={"type": "content", "content": "x"},
        reasoning_effort="high",
        store=True,
        verbosity="low",
    ),
    "response_format.json_schema.name": (
        {"response_format": form()},
        {"response_format": form(name="m")},
    ),
    "response_format.json_schema.description": (
        {"response_format": form()},
        {"response_format": form(description="d")},
    ),
    "messages[].annotations": (answered(content="x"), answered(content="x", annotations=[{}])),
    "messages[].parsed": (answered(content="x"), answered(content="x", parsed={})),
    "messages[].tool_calls[].index": (called(), answered(tool_calls=[{**CALL, "index": 0}])),
    "messages[].tool_calls[].function.parsed_arguments": (called(), called(parsed_arguments={})),
    "messages[].content[].prompt_cache_breakpoint": (said(PICTURE), said({**PICTURE, **BREAKPOINT})),
    "messages[].content[].cache_control": (
        said(PICTURE),
        said({**PICTURE, "cache_control": {"type": "ephemeral"}}),
    ),
}

CHAT_REFUSED: dict[str, Json] = {
    **VLLM_REFUSED,
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": {"continue_final_message": True},
    "mm_processor_kwargs": {"mm_processor_kwargs": {"num_crops": 4}},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "function_call": {"function_call": {"name": "f"}},
    "functions": {"functions": [{"name": "f"}]},
    "modalities": {"modalities": ["text", "audio"]},
    "moderation": {"moderation": {"model": "m"}},
    "web_search_options": {"web_search_options": {}},
    "messages[].audio": answered(content="x", audio={"id": "a"}),
    "messages[].function_call": answered(content="x", function_call={"name": "f", "arguments": "{}"}),
}
