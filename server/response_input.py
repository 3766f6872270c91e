"""Translates requests to ``/v1/responses`` into chat requests. Knows both schemas and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from server.errors import bad_request, missing_parameter, validation_error
from server.schemas.base import JsonObject
from server.schemas.chat import ChatRequest
from server.schemas.generation import CommonFields
from server.schemas.responses import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputItem,
    InputMessage,
    InputText,
    OutputText,
    Refusal,
    ResponsesRequest,
)
from server.schemas.visual_compression import PictureFields

RENAMED: Final = {
    r"messages\b(?s:.*)": "input",
    r"max_(completion_)?tokens\b": "max_output_tokens",
    r"response_format\b(\.json_schema\b)?": "text.format",
    r"(tools\[\d+\])\.function\b": r"\1",
    r"tool_choice\.function\b": "tool_choice",
    r"tool_choice\.allowed_tools\b(\.tools\[\d+\])?(\.function\b)?": r"tool_choice\1",
}
"""Maps patterns of chat field names to the names that errors use here, most of them one level flatter."""


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """Return the chat request, without streaming, as a response's last events repeat all of it.

    Raises ``ApiError`` with the field names of a chat.
    """
    shared = (set(CommonFields.model_fields) | set(PictureFields.model_fields)) - {"stream"}
    given = request.model_dump(include=request.model_fields_set & shared)
    text = request.text
    chat = {
        "messages": messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": request.wants_logprobs,
        "top_logprobs": request.top_logprobs,
        "response_format": response_format(text.format) if text and text.format else None,
        "tools": [tool(one, number) for number, one in enumerate(request.tools)] if request.tools else None,
        "tool_choice": tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
    }
    given |= {name: value for name, value in chat.items() if value is not None}
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        located = [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors()]
        raise validation_error(RequestValidationError(located, body=given)) from None


def messages(request: ResponsesRequest) -> list[JsonObject]:
    found: list[JsonObject] = []
    if request.instructions is not None:
        found.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*found, {"role": "user", "content": request.input}]
    refuse_misplaced(request.input)
    return [*found, *merge_calls(request.input)]


def refuse_misplaced(items: Sequence[InputItem]) -> None:
    """Raise ``ApiError`` for parts in the wrong role, here because a chat would report other positions."""
    for number, item in enumerate(items):
        if not isinstance(item, InputMessage) or isinstance(item.content, str):
            continue
        for place, one in enumerate(item.content):
            for kind, role in ((InputImage, "user"), (Refusal, "assistant")):
                if isinstance(one, kind) and item.role != role:
                    raise bad_request(
                        f"Parts of type '{one.type}' are allowed in messages with the role '{role}', not "
                        f"'{item.role}'.",
                        param=f"input[{number}].content[{place}]",
                    )


def merge_calls(items: Iterable[InputItem]) -> Iterable[JsonObject]:
    """Merge calls into assistant messages, as a chat has them; in a response each is an item of its own."""
    speaking: JsonObject | None = None
    for item in items:
        if isinstance(item, FunctionCall):
            if speaking is None:
                speaking = {"role": "assistant", "content": None}
                yield speaking
            function = {"name": item.name, "arguments": item.arguments}
            calls = speaking.setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
            continue
        said = message(item)
        speaking = said if said["role"] == "assistant" else None
        yield said


def message(item: InputMessage | FunctionCallOutput) -> JsonObject:
    if isinstance(item, FunctionCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": content(item.output)}
    return {"role": item.role, "content": content(item.content)}


def content(parts: str | Sequence[InputText | InputImage | OutputText | Refusal]) -> Any:
    return parts if isinstance(parts, str) else [part(one) for one in parts]


def part(given: InputText | InputImage | OutputText | Refusal) -> JsonObject:
    match given:
        case InputText() | OutputText():
            return {"type": "text", "text": given.text}
        case InputImage():
            image = {"url": given.image_url, "detail": given.detail or "auto"}
            return {"type": "image_url", "image_url": image}
        case Refusal():
            return {"type": "refusal", "refusal": given.refusal}


def response_format(given: JsonObject) -> JsonObject:
    if given.get("type") != "json_schema":
        return given
    return nested("json_schema", given)


def tool(given: JsonObject, number: int) -> JsonObject:
    kind = given.get("type")
    if kind != "function":
        raise bad_request(
            f"Tools of type '{kind}' are not supported by this server; only functions are.",
            param=f"tools[{number}]",
            code="unsupported_parameter",
        )
    return nested("function", given)


def tool_choice(given: str | JsonObject | None) -> str | JsonObject | None:
    if not isinstance(given, dict):
        return given
    match given.get("type"):
        case "function" if "name" not in given:
            raise missing_parameter("tool_choice.name")
        case "function":
            return nested("function", given)
        case "allowed_tools":
            return nested("allowed_tools", {name: each_nested(value) for name, value in given.items()})
        case _:
            return given


def each_nested(given: Any) -> Any:
    """Return a list with its objects nested under ``function``, or any other value unchanged."""
    if not isinstance(given, list):
        return given
    return [nested("function", one) if isinstance(one, dict) else one for one in given]


def nested(kind: str, given: JsonObject) -> JsonObject:
    """Move the fields of a type into an object named after the type, as a chat has them."""
    return {"type": kind, kind: {k: v for k, v in given.items() if k != "type"}}
