"""Responses of ``/v1/chat/completions``, whole and in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from server.schemas.base import AnswerModel, is_absent
from server.schemas.speculation import AnswerMetrics, TracedRound

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class TopLogprob:
    """Not an ``AnswerModel``, which takes 6 times the memory: an answer may hold a million of these."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(slots=True)
class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(AnswerModel):
    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(AnswerModel):
    cached_tokens: int
    image_tokens: int
    uncompressed_image_tokens: int | None = Field(
        default=None,
        exclude_if=is_absent,
        description="Image tokens before 'visual_compression', where it removed some.",
    )


class Usage(AnswerModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class FunctionCall(AnswerModel):
    name: str
    arguments: str = Field(description="JSON as written by the model.")


class ToolCall(AnswerModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(AnswerModel):
    """``content`` is null if the answer consists of tool calls only."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=is_absent)


class Choice(AnswerModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishReason


class Extension(AnswerModel):
    """Top-level fields in addition to those of the OpenAI API. Fields without a value are left out."""

    metrics: AnswerMetrics | None = Field(default=None, exclude_if=is_absent)
    speculative_trace: list[TracedRound] | None = Field(default=None, exclude_if=is_absent)


class ChatCompletion(Extension):
    id: str
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class DeltaFunction(AnswerModel):
    name: str | None = Field(default=None, exclude_if=is_absent)
    arguments: str


class DeltaToolCall(AnswerModel):
    """An addition to call ``index``. The id, type and name come only with the call's first delta."""

    index: int
    id: str | None = Field(default=None, exclude_if=is_absent)
    type: Literal["function"] | None = Field(default=None, exclude_if=is_absent)
    function: DeltaFunction


class Delta(AnswerModel):
    """Holds only the fields that change."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_absent)
    content: str | None = Field(default=None, exclude_if=is_absent)
    tool_calls: list[DeltaToolCall] | None = Field(default=None, exclude_if=is_absent)


class ChunkChoice(AnswerModel):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(Extension):
    id: str
    system_fingerprint: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
