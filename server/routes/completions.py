"""``/v1/completions``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import StrictRoute
from server.completions import begin_completion
from server.openapi import answers
from server.schemas.completions import Completion, CompletionRequest
from server.serving import adopt_id, respond
from server.state import State

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/completions", responses=answers(Completion, Completion))
async def create_completion(request: Request, body: CompletionRequest, state: State) -> Response:
    """Continue one or several texts as they are: no template, no images."""
    model = state.served_name(body.model)
    request_id = adopt_id(request, body.request_id)
    begin = partial(begin_completion, state, body, request_id=request_id, model=model)
    return await respond(request, begin, stream=body.stream)
