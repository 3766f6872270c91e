"""Responses of ``/v1/responses``: the chunks of a chat in the format of that API."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from server.answering import OpenAnswer
from server.chat import ChatAnswer, begin_chat
from server.errors import as_api_error
from server.response_input import to_chat
from server.response_items import ItemWriter
from server.schemas.response_answers import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
)
from server.schemas.responses import ResponsesRequest
from server.schemas.speculation import TracedRound
from server.sse import Event
from server.state import ServerState

ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class ResponsesAnswer:
    """An admitted request."""

    def __init__(self, request: ResponsesRequest, chat: ChatAnswer, *, request_id: str, model: str) -> None:
        self._request = request
        self._chat = chat
        self._request_id = request_id
        self._model = model
        self._created = int(time.time())
        self._num_events = 0
        self._writer = ItemWriter(request_id)
        self._rounds: list[TracedRound] = []

    @property
    def opened(self) -> OpenAnswer:
        return self._chat.opened

    async def whole(self) -> Response:
        """Return the response that the last event of a stream holds."""
        async for event in self._tell():
            response = event.response
        assert response is not None
        return response

    async def events(self) -> AsyncIterator[Event]:
        try:
            async for event in self._tell():
                yield named(event)
        except Exception as error:
            detail = as_api_error(error).answer.error
            failure = ResponseError(code=detail.code or detail.type, message=detail.message)
            yield named(self._event("response.failed", response=self._response("failed", failure)))

    async def _tell(self) -> AsyncIterator[ResponseEvent]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))
        reason = None
        async for chunk in self._chat.chunks():
            self._rounds += chunk.speculative_trace or ()
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                for kind, fields in self._writer.take(choice):
                    yield self._event(kind, **fields)
        status: Literal["completed", "incomplete"] = "incomplete" if reason == "length" else "completed"
        for kind, fields in self._writer.finish(reason):
            yield self._event(kind, **fields)
        yield self._event(f"response.{status}", response=self._response(status))

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        event = ResponseEvent(type=kind, sequence_number=self._num_events, **fields)
        self._num_events += 1
        return event

    def _response(self, status: ResponseStatus, error: ResponseError | None = None) -> Response:
        request = self._request
        has_ended = status in ("completed", "incomplete")
        cut = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        return Response(
            id=f"resp_{self._request_id}",
            created_at=self._created,
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            error=error,
            incomplete_details=cut,
            model=self._model,
            output=list(self._writer.items),
            usage=self._usage() if has_ended else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            text={"format": (request.text and request.text.format) or {"type": "text"}},
            tool_choice=request.tool_choice or "auto",
            tools=request.tools or [],
            top_logprobs=request.top_logprobs or 0,
            top_p=request.top_p,
            user=request.user,
            metrics=self.opened.metrics() if has_ended else None,
            speculative_trace=self._rounds if has_ended and self._rounds else None,
        )

    def _usage(self) -> ResponseUsage:
        usage = self.opened.usage()
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
                image_tokens=usage.prompt_tokens_details.image_tokens,
                uncompressed_image_tokens=usage.prompt_tokens_details.uncompressed_image_tokens,
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=usage.total_tokens,
        )


async def begin_response(
    state: ServerState, request: ResponsesRequest, *, request_id: str, model: str
) -> ResponsesAnswer:
    """Admit a request and start it. Raises ``ApiError`` if it cannot be answered."""
    chat = await begin_chat(state, to_chat(request), request_id=request_id, model=model)
    return ResponsesAnswer(request, chat, request_id=request_id, model=model)


def named(event: ResponseEvent) -> Event:
    return {"event": event.type, "data": event.model_dump_json()}
