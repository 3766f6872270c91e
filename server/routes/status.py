"""Liveness, readiness, metrics and version of the server.

``HEAD`` is answered like ``GET``, as some load balancers use it; the server leaves the body out. The lower
decorator is the one whose method ``Allow`` lists in a 405.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.errors import engine_unavailable
from server.schemas.models import AllowedVisualCompression, Drafting, Status, Version
from server.state import State
from server.version import VERSION

router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health() -> Status:
    """Report that this process is alive. Says nothing about the model; needs no key."""
    return Status(status="alive")


@router.head("/ready", include_in_schema=False)
@router.get("/ready")
async def ready(state: State) -> Status:
    """Report that the model is loaded and responsive; a 503 if it is not."""
    if state.client.state != "ready":
        raise engine_unavailable()
    return Status(status="ready")


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(state: State) -> Response:
    """Return metrics in the Prometheus text format."""
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.head("/version", include_in_schema=False)
@router.get("/version")
async def version(state: State) -> Version:
    """Return the server's version, its draft, and whether images are compressed for the model."""
    info = state.client.info
    drafting = lossy = None
    if info is not None:
        drafting = Drafting(
            draft=info.draft,
            num_steps=info.num_steps,
            topk=info.topk,
            num_draft_tokens=info.num_draft_tokens,
            compressors=list(info.compressors),
        )
        if (how := info.visual_compression) is not None:
            lossy = AllowedVisualCompression(method=how.method, ratio=how.ratio)
    return Version(version=VERSION, speculative=drafting, visual_compression=lossy)
