"""A chat request's way: admission, pictures, prompt, choices. Ends as one answer or as a stream of chunks.

Knows the order of things; the parts know how.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from msgspec.structs import replace

from engine.client import EngineClient
from engine.messages import EngineInfo, GenerateRequest
from processing.prompt import Prompt
from processing.stop import StopMatcher
from server.admission import Admission
from server.choice import Choice, Piece
from server.errors import bad_request, engine_unavailable
from server.generation import Generation
from server.logprobs import LogprobFormatter
from server.metrics import Metrics
from server.prompts import PromptBuilder
from server.sampling import SamplingBuilder, SamplingDefaults
from server.schemas.answers import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    FinishReason,
    PromptTokensDetails,
    TokenLogprob,
    Usage,
)
from server.schemas.answers import Choice as ChoiceAnswer
from server.schemas.chat import ChatRequest
from server.schemas.speculation import AnswerMetrics, TracedRound
from server.speculation import TraceFormatter, answer_metrics, speculative_params
from server.timeline import Timeline

if TYPE_CHECKING:
    from processing.processor import Processor


@dataclass(frozen=True, slots=True)
class ChatParts:
    """What answering needs, built once per app."""

    client: EngineClient
    processor: Processor
    prompts: PromptBuilder
    defaults: SamplingDefaults
    admission: Admission
    metrics: Metrics
    allows_priorities: bool


class ChatAnswer:
    """A request that was let in. Consume it by ``whole`` or ``chunks``, once; then ``close`` it."""

    def __init__(
        self,
        request: ChatRequest,
        *,
        request_id: str,
        model: str,
        prompt: Prompt,
        choices: list[Choice],
        generation: Generation[Piece],
    ) -> None:
        self._request = request
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._created = int(time.time())
        self._prompt = prompt
        self._choices = choices
        self._generation = generation

    def close(self) -> None:
        self._generation.close()

    async def wait_first(self, timeout: float) -> None:
        await self._generation.wait_first(timeout)

    async def whole(self) -> ChatCompletion:
        texts = [""] * len(self._choices)
        logprobs: list[list[TokenLogprob]] = [[] for _ in self._choices]
        reasons: list[FinishReason] = ["stop"] * len(self._choices)
        rounds: list[list[TracedRound]] = [[] for _ in self._choices]
        async for piece in self._generation:
            texts[piece.index] += piece.text
            logprobs[piece.index] += piece.logprobs
            rounds[piece.index] += piece.rounds
            reasons[piece.index] = piece.finish_reason or reasons[piece.index]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                ChoiceAnswer(
                    index=index,
                    message=AnswerMessage(content=text),
                    logprobs=self._choice_logprobs(logprobs[index]),
                    finish_reason=reasons[index],
                )
                for index, text in enumerate(texts)
            ],
            usage=self._usage(),
            metrics=self._metrics(),
            speculative_trace=list(chain.from_iterable(rounds)) if self._request.traces else None,
        )

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        for index in range(len(self._choices)):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        num_open = len(self._choices)
        async for piece in self._generation:
            if piece.text or piece.logprobs or piece.rounds:
                delta = Delta(content=piece.text)
                logprobs = self._choice_logprobs(piece.logprobs)
                gain = ChunkChoice(index=piece.index, delta=delta, logprobs=logprobs)
                yield self._chunk(gain, rounds=piece.rounds)
            if piece.finish_reason is not None:
                num_open -= 1
                is_last = not num_open and not self._request.include_usage
                end = ChunkChoice(index=piece.index, delta=Delta(), finish_reason=piece.finish_reason)
                yield self._chunk(end, metrics=self._metrics() if is_last else None)
        if self._request.include_usage:
            yield self._chunk(usage=self._usage(), metrics=self._metrics())

    def _chunk(
        self,
        *choices: ChunkChoice,
        usage: Usage | None = None,
        metrics: AnswerMetrics | None = None,
        rounds: Sequence[TracedRound] = (),
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=usage,
            metrics=metrics,
            speculative_trace=list(rounds) or None,
        )

    def _metrics(self) -> AnswerMetrics | None:
        return answer_metrics([choice.speculation for choice in self._choices])

    def _choice_logprobs(self, content: list[TokenLogprob]) -> ChoiceLogprobs | None:
        return ChoiceLogprobs(content=content) if self._request.logprobs else None

    def _usage(self) -> Usage:
        prompt_tokens = len(self._prompt.token_ids)
        completion_tokens = sum(choice.num_tokens for choice in self._choices)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=self._choices[0].num_cached,
                image_tokens=sum(image.num_tokens for image in self._prompt.images),
            ),
        )


async def begin_chat(parts: ChatParts, request: ChatRequest, *, request_id: str, model: str) -> ChatAnswer:
    """Let the request in and start its choices. Raises ``ApiError`` where it cannot be answered."""
    arrival = time.monotonic()
    if request.priority and not parts.allows_priorities:
        raise bad_request(
            "'priority' needs a server that was started with '--scheduling-policy priority'.",
            param="priority",
            code="unsupported_parameter",
        )
    ticket = parts.admission.admit(request.num_choices)
    try:
        info = parts.client.info
        if info is None:
            raise engine_unavailable()
        prompt = await parts.prompts.build(
            request.messages, max_images=info.max_images, max_len=info.max_model_len
        )
        parts.admission.check()
        choices = make_choices(parts, request, prompt, info, request_id=request_id, arrival=arrival)
    except BaseException:
        ticket.release()
        raise
    generation = Generation([choice.pieces() for choice in choices], on_end=ticket.release)
    return ChatAnswer(
        request,
        request_id=request_id,
        model=model,
        prompt=prompt,
        choices=choices,
        generation=generation,
    )


def make_choices(
    parts: ChatParts,
    request: ChatRequest,
    prompt: Prompt,
    info: EngineInfo,
    *,
    request_id: str,
    arrival: float,
) -> list[Choice]:
    """All with the same seed; the engine's noise differs by ``choice_index``."""
    prompt_len = len(prompt.token_ids)
    builder = SamplingBuilder(parts.defaults, info.max_model_len, info.vocab_size)
    sampling = builder.build(request, prompt_len)
    unique_id = f"{request_id}-{secrets.token_hex(4)}"
    num_top = request.num_logprobs
    logprobs = None if num_top is None else LogprobFormatter(parts.processor, num_top)
    return [
        Choice(
            parts.client,
            GenerateRequest(
                request_id=f"{unique_id}-{index}",
                prompt=prompt,
                sampling=replace(sampling, choice_index=index),
                speculative=speculative_params(request.speculative),
                cache_salt=request.cache_salt,
                priority=request.priority,
            ),
            detokenizer=parts.processor.detokenizer(skip_special_tokens=request.skip_special_tokens),
            stop=StopMatcher(request.stop_strings, include_stop=request.include_stop_str_in_output),
            logprobs=logprobs,
            trace=TraceFormatter(parts.processor, index) if request.traces else None,
            timeline=Timeline(parts.metrics, arrival, prompt_len),
        )
        for index in range(request.num_choices)
    ]
