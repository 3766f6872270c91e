"""``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog
from fastapi import APIRouter, Request, Response

from server.body import StrictRoute
from server.chat import ChatAnswer, begin_chat
from server.disconnect import unless_disconnected
from server.openapi import CHUNK_SCHEMA
from server.schemas.answers import ChatCompletion
from server.schemas.chat import ChatRequest
from server.sse import ChatStream
from server.state import State

PING_SECONDS: Final = 15.0

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "model": ChatCompletion,
        "description": "The answer; with `stream`, server-sent events of chunks, then `[DONE]`.",
        "content": {"text/event-stream": {"itemSchema": CHUNK_SCHEMA}},
    },
}

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=RESPONSES)
async def create_chat_completion(request: Request, body: ChatRequest, state: State) -> Response:
    """Answer a conversation that may hold pictures."""
    model = state.served_name(body.model)
    if body.request_id is not None:
        request.state.request_id = body.request_id
        structlog.contextvars.bind_contextvars(request_id=body.request_id)
    begin = partial(begin_chat, state.parts, body, request_id=request.state.request_id, model=model)
    if body.stream:
        answer = await unless_disconnected(request, begun(begin))
        return ChatStream(answer, show_usage=body.include_usage, ping=PING_SECONDS)
    whole = await unless_disconnected(request, completed(begin))
    return Response(whole.model_dump_json(), media_type="application/json")


async def begun(begin: Callable[[], Awaitable[ChatAnswer]]) -> ChatAnswer:
    """Until the first token, or until the first ping is due, a failure is still a status and not an event."""
    answer = await begin()
    try:
        await answer.wait_first(PING_SECONDS)
    except BaseException:
        answer.close()
        raise
    return answer


async def completed(begin: Callable[[], Awaitable[ChatAnswer]]) -> ChatCompletion:
    answer = await begin()
    try:
        return await answer.whole()
    finally:
        answer.close()
