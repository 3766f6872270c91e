"""Chunks as server-sent events: data lines, pings while idle, an error as the last event, ``[DONE]``."""

from __future__ import annotations

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from sse_starlette.sse import AppStatus
from starlette.types import Receive, Scope, Send

from server.chat import ChatAnswer
from server.errors import as_api_error
from server.schemas.base import AnswerModel

# Without this the library cuts every stream at SIGTERM; open answers are drained instead (server.run).
AppStatus.enable_automatic_graceful_drain = False


class ChatStream(EventSourceResponse):
    """Closes the answer however the response ends, also when it never began."""

    def __init__(self, answer: ChatAnswer, *, show_usage: bool, ping: float) -> None:
        super().__init__(events(answer, show_usage=show_usage), ping=ping, sep="\n")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def events(answer: ChatAnswer, *, show_usage: bool) -> AsyncIterator[dict[str, str]]:
    hidden = None if show_usage else {"usage"}
    try:
        async for chunk in answer.chunks():
            yield data(chunk, hidden)
    except Exception as error:
        yield data(as_api_error(error).answer)
    else:
        yield {"data": "[DONE]"}


def data(model: AnswerModel, hidden: set[str] | None = None) -> dict[str, str]:
    return {"data": model.model_dump_json(exclude=hidden)}
