"""``/v1/chat/completions``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import StrictRoute
from server.chat import begin_chat
from server.openapi import answers
from server.schemas.answers import ChatCompletion, ChatCompletionChunk
from server.schemas.chat import ChatRequest
from server.serving import adopt_id, respond
from server.state import State

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=answers(ChatCompletion, ChatCompletionChunk))
async def create_chat_completion(request: Request, body: ChatRequest, state: State) -> Response:
    """Answer a conversation that may contain images."""
    model = state.served_name(body.model)
    request_id = adopt_id(request, body.request_id)
    begin = partial(begin_chat, state, body, request_id=request_id, model=model)
    return await respond(request, begin, stream=body.stream)
