"""For every field an example, as what a request has without it and with it; by endpoint and path."""

from __future__ import annotations

from typing import Any

from server.schemas.responses import LOGPROBS

Json = dict[str, Any]
Example = tuple[Json, Json]
"""What is added to the endpoint's ``BASE``, without the field and with it."""


def alone(**fields: Any) -> dict[str, Example]:
    return {name: ({}, {name: value}) for name, value in fields.items()}


def inside(field: str, base: Any, **paths: Any) -> dict[str, Example]:
    """``paths``: names below ``field``, with the value of all of ``field`` in which they differ."""
    return {f"{field}.{path}": ({field: base}, {field: value}) for path, value in paths.items()}


BASE: dict[str, Json] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}], "seed": 0},
    "completions": {"prompt": "Hi", "seed": 0},
    "responses": {"input": "Hi", "seed": 0},
}

COMMON = {
    **alone(
        cache_salt="x",
        frequency_penalty=1,
        ignore_eos=True,
        logit_bias={"65": 5},
        min_p=0.1,
        min_tokens=2,
        model="other",
        presence_penalty=1,
        priority=1,
        repetition_penalty=1.1,
        request_id="mine",
        seed=1,
        skip_special_tokens=False,
        speculative={"enabled": False},
        stop="wor",
        stop_token_ids=[65],
        stream=True,
        temperature=0.5,
        top_k=3,
        top_p=0.5,
    ),
    **inside(
        "speculative",
        {},
        enabled={"enabled": False},
        num_draft_tokens={"num_draft_tokens": 3},
        num_steps={"num_steps": 3},
        topk={"topk": 3},
        trace={"trace": True},
    ),
    "include_stop_str_in_output": ({"stop": "wor"}, {"stop": "wor", "include_stop_str_in_output": True}),
}
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
OLDER = {
    **alone(max_tokens=3, n=2),
    "stream_options": ({"stream": True}, STREAMED),
    "stream_options.include_usage": ({"stream": True}, STREAMED),
    "stream_options.continuous_usage_stats": (
        STREAMED,
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
}
NOT_OBFUSCATED = {
    "stream_options.include_obfuscation": (
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    )
}

PICTURE: Json = {"type": "image_url", "image_url": {"url": "color:red"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def messages(base: Json, *more: Json) -> Json:
    return {"messages": [base, *more]}


def said(*parts: Json) -> Json:
    return messages({"role": "user", "content": list(parts)})


def answered(**fields: Any) -> Json:
    return messages({"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, **fields})


def called(call_id: str = "1", name: str = "f", arguments: str = "{}") -> Json:
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
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

BREAKPOINT = {"prompt_cache_breakpoint": {"mode": "explicit"}}
CACHE_HINTS = alone(
    prompt_cache_key="k",
    prompt_cache_options={"mode": "implicit", "ttl": "30m"},
    prompt_cache_retention="24h",
    safety_identifier="s",
    service_tier="flex",
    user="u",
)

NO_EFFECT: dict[str, dict[str, Example]] = {
    "chat": {
        **CACHE_HINTS,
        **NOT_OBFUSCATED,
        **alone(metadata={"a": "b"}, prediction={"type": "content", "content": "x"}, store=True),
        "response_format.json_schema.name": (
            {"response_format": form()},
            {"response_format": form(name="m")},
        ),
        "response_format.json_schema.description": (
            {"response_format": form()},
            {"response_format": form(description="d")},
        ),
        "messages[].annotations": (answered(content="x"), answered(content="x", annotations=[{}])),
        "messages[].content[].prompt_cache_breakpoint": (said(PICTURE), said({**PICTURE, **BREAKPOINT})),
        "messages[].content[].image_url.detail": (
            said(PICTURE),
            said({**PICTURE, "image_url": {"url": "color:red", "detail": "low"}}),
        ),
    },
    "completions": {**NOT_OBFUSCATED, **alone(user="u")},
    "responses": {
        **CACHE_HINTS,
        **NOT_OBFUSCATED,
        **alone(max_tool_calls=3),
        "stream_options": ({"stream": True}, {"stream": True, "stream_options": {}}),
        "input[].id": (given(TOLD), given({**TOLD, "id": "msg_1"})),
        "input[].status": (given(TOLD), given({**TOLD, "status": "completed"})),
        "input[].phase": (given(TOLD), given({**TOLD, "phase": "commentary"})),
        "input[].content[].detail": (
            with_parts(INPUT_PICTURE),
            with_parts({**INPUT_PICTURE, "detail": "low"}),
        ),
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
    "chat": {
        "audio": {"audio": {"voice": "alloy", "format": "wav"}},
        "function_call": {"function_call": {"name": "f"}},
        "functions": {"functions": [{"name": "f"}]},
        "modalities": {"modalities": ["text", "audio"]},
        "moderation": {"moderation": {"model": "m"}},
        "reasoning_effort": {"reasoning_effort": "high"},
        "verbosity": {"verbosity": "low"},
        "web_search_options": {"web_search_options": {}},
        "messages[].audio": answered(content="x", audio={"id": "a"}),
        "messages[].function_call": answered(content="x", function_call={"name": "f", "arguments": "{}"}),
    },
    "completions": {"best_of": {"best_of": 2}, "suffix": {"suffix": "x"}},
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
        "reasoning": {"reasoning": {"effort": "high"}},
        "store": {"store": True},
        "text.verbosity": {"text": {"verbosity": "low"}},
        "truncation": {"truncation": "auto"},
        "input[].content[].file_id": with_parts({**INPUT_PICTURE, "file_id": "f"}),
    },
}

TESTED = {
    "add_special_tokens": "tests/server/test_completions.py::test_texts_begin_as_the_tokenizer_would",
    "speculative.compressor": "tests/server/test_speculation.py::test_what_is_refused_is_named",
    "response_format.json_schema.strict": "tests/server/test_tools.py::test_formats",
}
"""Fields that work and whose effect a test of their own shows."""
