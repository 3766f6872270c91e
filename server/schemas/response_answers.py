"""Responses of ``/v1/responses`` and the events that stream one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.schemas.answers import Extension, TokenLogprob
from server.schemas.base import AnswerModel, JsonObject, is_absent


class OutputTextPart(AnswerModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[JsonObject] = Field(default_factory=list)
    logprobs: list[TokenLogprob] = Field(default_factory=list)


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class MessageItem(AnswerModel):
    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputTextPart]


class FunctionCallItem(AnswerModel):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = MessageItem | FunctionCallItem


class InputTokensDetails(AnswerModel):
    cached_tokens: int
    cache_write_tokens: int = 0
    image_tokens: int
    uncompressed_image_tokens: int | None = Field(
        default=None,
        exclude_if=is_absent,
        description="Image tokens before 'visual_compression', where it removed some.",
    )


class OutputTokensDetails(AnswerModel):
    reasoning_tokens: int = 0


class ResponseUsage(AnswerModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class NoReasoning(AnswerModel):
    effort: None = None
    summary: None = None


class ResponseError(AnswerModel):
    code: str
    message: str


class IncompleteDetails(AnswerModel):
    reason: Literal["max_output_tokens"]


class Response(Extension):
    """Holds the result and repeats the parameters of the request, as the OpenAI API does."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None

    background: Literal[False] = False
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: NoReasoning = NoReasoning()
    store: Literal[False] = False
    temperature: float | None
    text: JsonObject
    tool_choice: str | JsonObject
    tools: list[JsonObject]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    user: str | None


class ResponseEvent(AnswerModel):
    """An event of a stream; which fields it has depends on its type, as in the OpenAI API."""

    type: str
    sequence_number: int
    response: Response | None = Field(default=None, exclude_if=is_absent)
    output_index: int | None = Field(default=None, exclude_if=is_absent)
    content_index: int | None = Field(default=None, exclude_if=is_absent)
    item_id: str | None = Field(default=None, exclude_if=is_absent)
    item: OutputItem | None = Field(default=None, exclude_if=is_absent)
    part: OutputTextPart | None = Field(default=None, exclude_if=is_absent)
    delta: str | None = Field(default=None, exclude_if=is_absent)
    text: str | None = Field(default=None, exclude_if=is_absent)
    name: str | None = Field(default=None, exclude_if=is_absent)
    arguments: str | None = Field(default=None, exclude_if=is_absent)
    logprobs: list[TokenLogprob] | None = Field(default=None, exclude_if=is_absent)
