"""The app, as a pure function of its parts: nothing global, nothing read from the environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from engine.client import EngineClient
from server.admission import Admission
from server.body import OpenBodies
from server.context import RequestContextMiddleware
from server.errors import ERROR_RESPONSES, install_error_handlers
from server.metrics import Metrics
from server.openapi import describe_streams
from server.prompts import ImageLoader, PromptBuilder
from server.routes import chat, completions, models, page, responses, status, tokens
from server.sampling import SamplingDefaults
from server.security import ApiKeyMiddleware, OriginMiddleware
from server.settings import ServeSettings
from server.state import ServerState
from server.version import VERSION

if TYPE_CHECKING:
    from processing.processor import Processor

PROBES = frozenset({"/health", "/ready", "/metrics"})


def create_app(
    settings: ServeSettings,
    *,
    client: EngineClient,
    processor: Processor,
    media: ImageLoader,
    defaults: SamplingDefaults | None = None,
) -> FastAPI:
    """Create the app, which starts and stops ``client`` together with itself."""
    metrics = Metrics(settings.metrics_prefix, settings.names[0])
    metrics.engine_up.set_function(lambda: client.state == "ready")
    client.add_listener(metrics.on_step)
    prompts = PromptBuilder(processor, media, settings.max_images)
    admission = Admission(
        client,
        metrics,
        max_open=settings.max_num_seqs + settings.max_num_queued_reqs,
        max_waiting_tokens=settings.max_num_queued_tokens,
        max_picture_bytes=settings.max_picture_memory,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await client.start()
        try:
            yield
        finally:
            await client.shutdown()
            await prompts.aclose()

    keys = settings.api_keys()
    app = FastAPI(
        title="SpecVLM",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Redirects would use the scheme and host of the request as seen here: http, behind a TLS proxy.
        redirect_slashes=False,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if keys else [],
    )
    app.state.max_request_size = settings.max_request_size
    app.state.open_bodies = OpenBodies()
    app.state.server = ServerState(
        settings=settings,
        client=client,
        processor=processor,
        prompts=prompts,
        defaults=defaults or SamplingDefaults(),
        admission=admission,
        metrics=metrics,
    )
    for module in (chat, completions, responses, models, tokens, status):
        app.include_router(module.router, responses=ERROR_RESPONSES)
    app.include_router(page.router)
    describe_streams(app)
    install_error_handlers(app)
    if keys:
        app.add_middleware(ApiKeyMiddleware, keys=keys, public_paths=page.PUBLIC_PATHS)
    if settings.allowed_origins:  # outside the key check, as browsers send preflight requests without a key
        app.add_middleware(
            OriginMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(
        RequestContextMiddleware,
        on_response=metrics.on_response,
        quiet_paths=PROBES | page.PART_PATHS,
    )
    return app
