"""Chat completions, whole or as a stream of chunks, from the pieces of their choices."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from engine.messages import EngineInfo
from processing.prompt import Prompt
from server.answering import OpenAnswer, open_answer
from server.calls import delta_calls, joined_calls
from server.choice import gathered
from server.errors import bad_request
from server.schemas.answers import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    TokenLogprob,
    Usage,
)
from server.schemas.chat import ChatRequest
from server.schemas.speculation import AnswerMetrics, TracedRound
from server.sse import Event, chunk_events
from server.state import ServerState


class ChatAnswer:
    """An admitted request."""

    def __init__(self, request: ChatRequest, opened: OpenAnswer, *, request_id: str, model: str) -> None:
        self.opened = opened
        self._request = request
        self._num_choices = len(opened.choices)
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._created = int(time.time())

    async def whole(self) -> ChatCompletion:
        wholes = await gathered(self.opened.generation, self._num_choices)
        trace = [one for whole in wholes for one in whole.rounds] if self._request.traces else None
        return ChatCompletion(
            id=self._id,
            system_fingerprint=self.opened.fingerprint,
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    index=whole.index,
                    message=AnswerMessage(
                        content=None if whole.calls and not whole.text else whole.text,
                        tool_calls=joined_calls(whole.calls),
                    ),
                    logprobs=self._choice_logprobs(whole.logprobs),
                    finish_reason=whole.finish_reason or "stop",
                )
                for whole in wholes
            ],
            usage=self.opened.usage(),
            metrics=self.opened.metrics(),
            speculative_trace=trace,
        )

    def events(self) -> AsyncIterator[Event]:
        return chunk_events(self.chunks(), show_usage=self._request.include_usage)

    async def chunks(self) -> AsyncIterator[ChatCompletionChunk]:
        for index in range(self._num_choices):
            yield self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        num_open = self._num_choices
        async for piece in self.opened.generation:
            if piece.text or piece.calls or piece.logprobs or piece.rounds:
                content = None if piece.calls and not piece.text else piece.text
                delta = Delta(content=content, tool_calls=delta_calls(piece.calls))
                logprobs = self._choice_logprobs(piece.logprobs)
                gain = ChunkChoice(index=piece.index, delta=delta, logprobs=logprobs)
                yield self._chunk(gain, rounds=piece.rounds)
            if piece.finish_reason is not None:
                num_open -= 1
                is_last = not num_open and not self._request.include_usage
                end = ChunkChoice(index=piece.index, delta=Delta(), finish_reason=piece.finish_reason)
                yield self._chunk(end, metrics=self.opened.metrics() if is_last else None)
        if self._request.include_usage:
            yield self._chunk(usage=self.opened.usage(), metrics=self.opened.metrics())

    def _chunk(
        self,
        *choices: ChunkChoice,
        usage: Usage | None = None,
        metrics: AnswerMetrics | None = None,
        rounds: Sequence[TracedRound] = (),
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            system_fingerprint=self.opened.fingerprint,
            created=self._created,
            model=self._model,
            choices=list(choices),
            usage=self.opened.usage() if self._request.continuous_usage else usage,
            metrics=metrics,
            speculative_trace=list(rounds) or None,
        )

    def _choice_logprobs(self, content: list[TokenLogprob]) -> ChoiceLogprobs | None:
        return ChoiceLogprobs(content=content) if self._request.logprobs else None


async def begin_chat(state: ServerState, request: ChatRequest, *, request_id: str, model: str) -> ChatAnswer:
    """Admit a request and start its choices. Raises ``ApiError`` if it cannot be answered."""
    arguments = template_arguments(state, request)
    plan = state.processor.tools.plan(request.output)
    if plan.grammar is not None and request.ignore_eos:
        raise bad_request(
            "'ignore_eos' cannot be combined with a constrained answer format.", param="ignore_eos"
        )

    async def build(info: EngineInfo) -> list[Prompt]:
        return [
            await state.prompts.build(
                request.messages, plan, arguments, max_images=info.max_images, max_len=info.max_model_len
            )
        ]

    opened = await open_answer(state, request, build, plan=plan, request_id=request_id)
    return ChatAnswer(request, opened, request_id=request_id, model=model)


def template_arguments(state: ServerState, request: ChatRequest) -> dict[str, Any]:
    """Return the arguments for the chat template. Only names that it reads are allowed, none that control the
    rendering itself (CVE-2025-62426)."""
    arguments = request.chat_template_kwargs or {}
    known = state.processor.template_arguments
    if unknown := arguments.keys() - known:
        message = f"it reads {sorted(known)}" if known else "it reads no arguments"
        raise bad_request(
            f"The model's chat template does not read '{min(unknown)}'; {message}.",
            param="chat_template_kwargs",
            code="unknown_parameter",
        )
    return dict(arguments)
