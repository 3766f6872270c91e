"""Completions of plain prompts, whole or as a stream of chunks, from the pieces of their choices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from engine.messages import EngineInfo
from processing.prompt import Prompt
from server.answering import OpenAnswer, open_answer
from server.choice import gathered
from server.logprobs import CompletionLogprobFormatter
from server.schemas.answers import TokenLogprob, Usage
from server.schemas.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from server.schemas.speculation import AnswerMetrics, TracedRound
from server.sse import Event, chunk_events
from server.state import ServerState

FEW: Final = 100
"""Tokens whose log-probabilities are formatted on the event loop; more take milliseconds, in a thread."""


class CompletionAnswer:
    """An admitted request. ``echoes`` is what each choice begins with: its prompt, or nothing."""

    def __init__(
        self,
        request: CompletionRequest,
        opened: OpenAnswer,
        echoes: Sequence[str],
        *,
        request_id: str,
        model: str,
    ) -> None:
        self.opened = opened
        self._request = request
        self._echoes = echoes
        self._logprobs = [CompletionLogprobFormatter(echo) for echo in echoes]
        self._id = f"cmpl-{request_id}"
        self._model = model
        self._created = int(time.time())

    async def whole(self) -> Completion:
        wholes = await gathered(self.opened.generation, len(self._echoes))
        choices = [
            CompletionChoice(
                index=index,
                text=echo + whole.text,
                logprobs=await self._format(index, whole.logprobs, whole.offsets, whole.prompt_logprobs),
                finish_reason=whole.finish_reason or "stop",
            )
            for index, (echo, whole) in enumerate(zip(self._echoes, wholes, strict=True))
        ]
        trace = [one for whole in wholes for one in whole.rounds] if self._request.traces else None
        return self._completion(
            choices, usage=self.opened.usage(), metrics=self.opened.metrics(), trace=trace
        )

    def events(self) -> AsyncIterator[Event]:
        return chunk_events(self.chunks(), show_usage=self._request.include_usage)

    async def chunks(self) -> AsyncIterator[Completion]:
        scored = self._request.num_prompt_logprobs is not None
        for index, echo in enumerate(self._echoes):
            if echo and not scored:
                yield self._completion([CompletionChoice(index=index, text=echo)])
        num_open = len(self._echoes)
        async for piece in self.opened.generation:
            num_open -= piece.finish_reason is not None
            is_last = not num_open and not self._request.include_usage
            choice = CompletionChoice(
                index=piece.index,
                text=self._echoes[piece.index] + piece.text if piece.prompt_logprobs else piece.text,
                logprobs=await self._format(
                    piece.index, piece.logprobs, piece.offsets, piece.prompt_logprobs
                ),
                finish_reason=piece.finish_reason,
            )
            metrics = self.opened.metrics() if is_last else None
            usage = self.opened.usage() if self._request.continuous_usage else None
            yield self._completion([choice], usage=usage, metrics=metrics, trace=piece.rounds or None)
        if self._request.include_usage:
            yield self._completion([], usage=self.opened.usage(), metrics=self.opened.metrics())

    def _completion(
        self,
        choices: list[CompletionChoice],
        *,
        usage: Usage | None = None,
        metrics: AnswerMetrics | None = None,
        trace: list[TracedRound] | None = None,
    ) -> Completion:
        return Completion(
            id=self._id,
            system_fingerprint=self.opened.fingerprint,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            metrics=metrics,
            speculative_trace=trace,
        )

    async def _format(
        self,
        index: int,
        tokens: Sequence[TokenLogprob],
        offsets: Sequence[int],
        prompt: Sequence[TokenLogprob],
    ) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        format_ = self._logprobs[index].format
        if len(tokens) + len(prompt) <= FEW:
            return format_(tokens, offsets, prompt)
        return await asyncio.to_thread(format_, tokens, offsets, prompt)


async def begin_completion(
    state: ServerState, request: CompletionRequest, *, request_id: str, model: str
) -> CompletionAnswer:
    """Admit a request and start its choices. Raises ``ApiError`` if it cannot be answered."""

    decode = partial(state.processor.decode, skip_special_tokens=False)
    echoes: list[str] = []

    async def build(info: EngineInfo) -> list[Prompt]:
        prompts = []
        for prompt in request.prompts:
            built = await state.prompts.build_text(
                prompt, add_special_tokens=request.add_special_tokens, max_len=info.max_model_len
            )
            prompts.append(built)
            text = ""
            if request.echo:
                text = prompt if isinstance(prompt, str) else await state.prompts.in_pool(decode, prompt)
            echoes.extend([text] * request.num_choices)
        return prompts

    opened = await open_answer(state, request, build, num_prompts=len(request.prompts), request_id=request_id)
    return CompletionAnswer(request, opened, echoes, request_id=request_id, model=model)
