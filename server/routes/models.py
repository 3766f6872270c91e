"""``/v1/models``: the served model under each of its names."""

from __future__ import annotations

from fastapi import APIRouter

from server.schemas.models import ModelCard, ModelList
from server.state import ServerState, State

router = APIRouter()


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models")
async def list_models(state: State) -> ModelList:
    return ModelList(data=[card(state, name) for name in state.settings.names])


@router.head("/v1/models/{model_id:path}", include_in_schema=False)
@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, state: State) -> ModelCard:
    return card(state, state.served_name(model_id))


def card(state: ServerState, name: str) -> ModelCard:
    root = state.settings.model or name
    return ModelCard(id=name, created=state.started, root=root, max_model_len=state.max_model_len)
