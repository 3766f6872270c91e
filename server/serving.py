"""From an answer to an HTTP response, whole or streamed; the work stops when the client disconnects."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import structlog
from fastapi import Request, Response

from server.answering import OpenAnswer
from server.disconnect import unless_disconnected
from server.schemas.base import AnswerModel
from server.sse import Event, EventStream

PING_SECONDS: Final = 15.0


class Answer(Protocol):
    """An answer to be consumed once, by ``whole`` or ``events``."""

    @property
    def opened(self) -> OpenAnswer: ...

    async def whole(self) -> AnswerModel: ...

    def events(self) -> AsyncIterator[Event]: ...


Begin = Callable[[], Awaitable[Answer]]


def adopt_id(request: Request, wanted: str | None) -> str:
    """Return the id of the request; one in its body takes precedence over one in its header."""
    if wanted is not None:
        request.state.request_id = wanted
        structlog.contextvars.bind_contextvars(request_id=wanted)
    name: str = request.state.request_id
    return name


async def respond(request: Request, begin: Begin, *, stream: bool | None) -> Response:
    if stream:
        answer = await unless_disconnected(request, begun(begin))
        return EventStream(answer.events(), answer.opened.close, ping=PING_SECONDS)
    whole = await unless_disconnected(request, completed(begin))
    return Response(whole.model_dump_json(), media_type="application/json")


async def begun(begin: Begin) -> Answer:
    """Wait for the first token or the first ping: until then, a failure is an HTTP status, not an event."""
    answer = await begin()
    try:
        await answer.opened.wait_first(PING_SECONDS)
    except BaseException:
        answer.opened.close()
        raise
    return answer


async def completed(begin: Begin) -> AnswerModel:
    answer = await begin()
    try:
        return await answer.whole()
    finally:
        answer.opened.close()
