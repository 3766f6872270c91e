"""Answers of ``/v1/chat/completions``, whole and in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from server.schemas.base import AnswerModel, is_absent
from server.schemas.speculation import AnswerMetrics, TracedRound

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(slots=True)
class TopLogprob:
    """No ``AnswerModel``: there may be a million in an answer, and one of those takes 6 times as much."""

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
        description="Where 'visual_compression' spared some: how many there were before.",
    )


class Usage(AnswerModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class FunctionCall(AnswerModel):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(AnswerModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(AnswerModel):
    """``content`` is null where the answer is nothing but calls."""

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
    """Beside the fields of the OpenAI API, at the root. What there is nothing to say about is left out."""

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
    """What call ``index`` gained. Its id, type and name come once, with its first delta."""

    index: int
    id: str | None = Field(default=None, exclude_if=is_absent)
    type: Literal["function"] | None = Field(default=None, exclude_if=is_absent)
    function: DeltaFunction


class Delta(AnswerModel):
    """Only what changes is written."""

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
