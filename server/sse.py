"""Server-sent events: an error as the last event of a stream of chunks, ``[DONE]``, pings while idle."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from server.errors import as_api_error
from server.schemas.base import AnswerModel

END_OF_STREAM: Final = "[DONE]"

Event = dict[str, str]
"""The fields of one event: ``data``, and ``event`` where events have names."""

# Without this the library cuts every stream at SIGTERM; open answers are drained instead (server.run).
AppStatus.enable_automatic_graceful_drain = False


class EventStream(EventSourceResponse):
    """Calls ``close`` however the response ends, even if it never began."""

    def __init__(self, events: AsyncIterator[Event], close: Callable[[], None], *, ping: float) -> None:
        super().__init__(events, ping=ping, sep="\n")
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def chunk_events(chunks: AsyncIterator[AnswerModel], *, show_usage: bool) -> AsyncIterator[Event]:
    """Yield the events of a chat or completion stream."""
    hidden = None if show_usage else {"usage"}
    try:
        async for chunk in chunks:
            yield data(chunk, hidden)
    except Exception as error:
        yield data(as_api_error(error).answer)
    else:
        yield {"data": END_OF_STREAM}


def data(model: AnswerModel, hidden: set[str] | None = None) -> Event:
    return {"data": model.model_dump_json(exclude=hidden)}
