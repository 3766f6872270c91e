"""``/v1/responses``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import StrictRoute
from server.errors import ApiError
from server.openapi import answers
from server.response_input import RENAMED
from server.responses import begin_response
from server.schemas.response_answers import Response as ResponseAnswer
from server.schemas.response_answers import ResponseEvent
from server.schemas.responses import ResponsesRequest
from server.serving import adopt_id, respond
from server.state import State

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/responses", responses=answers(ResponseAnswer, ResponseEvent))
async def create_response(request: Request, body: ResponsesRequest, state: State) -> Response:
    """Answer a conversation that may contain images, in OpenAI's newer format. Nothing is stored."""
    model = state.served_name(body.model)
    request_id = adopt_id(request, body.request_id)
    begin = partial(begin_response, state, body, request_id=request_id, model=model)
    try:
        return await respond(request, begin, stream=body.stream)
    except ApiError as error:  # it names the fields of a chat
        raise error.renamed(RENAMED) from None
