"""Runs the app under uvicorn: prints a greeting when ready, drains on SIGTERM, exits if the model is lost.

Assembles the front end; the engine is made elsewhere. Heavy imports are inside functions, so that the
engine's process, which takes longest, starts before them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from engine.client import EngineClient, EngineDeadError
from engine.host.garbage import collecting_later
from server.descriptors import allow_many_files
from server.logs import configure_logging
from server.malloc import give_back_memory
from server.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

LAST_WORDS_SECONDS: Final = 5.0
"""Time after the drain for open requests to receive an error and for the engine to end."""

GOODBYE_SECONDS: Final = 2.0
"""Time for a client to confirm the end of its TLS connection and to read what was sent before."""

LOOPBACK_HOSTS: Final = ("127.0.0.1", "::1", "localhost")
WATCH_SECONDS: Final = 0.5

log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """At shutdown, the engine's client finishes open requests, or ends them with an error in time."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, client: EngineClient, *, drain_timeout: float
    ) -> None:
        super().__init__(config)
        self._app = app
        self._client = client
        self._drain_timeout = drain_timeout
        self._failure: str | None = None
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            # Two servers may have bound the same address; the first to listen gets it. Listening here,
            # because uvloop ignores the error silently.
            for one in sockets or ():
                one.listen(self.config.backlog)
        except OSError as error:
            log.error("cannot_listen", host=self.config.host, port=self.config.port, reason=str(error))
            self._failure, self.should_exit = str(error), True
            await self.lifespan.startup()  # its shutdown ends what the app owns
            await self.lifespan.shutdown()
            return
        await super().startup(sockets)
        if self.started:
            self._watching = asyncio.create_task(self._watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        admission = self._app.state.server.admission
        admission.close()
        self._app.state.open_bodies.close()
        draining = asyncio.create_task(self._drain())
        hanging_up = asyncio.create_task(self._hang_up())
        giving_up = asyncio.get_running_loop().call_later(self._drain_timeout, admission.abandon)
        try:
            await super().shutdown(sockets)
        finally:
            hanging_up.cancel()
            giving_up.cancel()
        if self.force_exit:  # a second Ctrl-C; the engine's process ends with ours
            draining.cancel()
        else:
            await draining

    @property
    def exit_code(self) -> int:
        return 0 if self._failure is None else 1

    async def _watch(self) -> None:
        """Print the greeting when the model is ready; stop serving when it fails for good."""
        try:
            info = await self._client.wait_ready()
            log.info(
                "model_loaded",
                model=info.model,
                device=info.device,
                draft=info.draft,
                seconds=info.load_seconds,
                max_model_len=info.max_model_len,
                kv_tokens=info.num_pages * info.page_size,
            )
            with contextlib.suppress(OSError):  # stdout may be closed; go on watching the engine
                settings = self._app.state.server.settings
                print(greeting(self.url(), settings.names[0], has_key=bool(settings.api_keys())), flush=True)
            while self._client.state != "failed":  # noqa: ASYNC110 - the engine's client has no event for it
                await asyncio.sleep(WATCH_SECONDS)
            self._failure = "the engine failed and will not be started again"
        except EngineDeadError as error:
            self._failure = str(error)
        log.error("model_lost", reason=self._failure)
        self.should_exit = True

    async def _drain(self) -> None:
        admission = self._app.state.server.admission
        log.info("draining", open_answers=admission.num_open, seconds=self._drain_timeout)
        await self._client.shutdown(self._drain_timeout)

    async def _hang_up(self) -> None:
        """Abort closed connections: over TLS they stay open until the client confirms, if it ever does."""
        while True:
            closing = [one.transport for one in self.server_state.connections if one.transport.is_closing()]
            await asyncio.sleep(GOODBYE_SECONDS)
            for transport in closing:
                transport.abort()

    def url(self) -> str:
        """Return the server's own address, without a proxy's prefix."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
        return f"{scheme}://{shown}:{port}"


def greeting(url: str, model: str, *, has_key: bool) -> str:
    key = "-H 'Authorization: Bearer YOUR_KEY' " if has_key else ""
    return f"""
SpecVLM serves '{model}' at {url}/v1

  curl {url}/v1/chat/completions {key}-H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Try it in a browser: {url}/
"""


def make_server(settings: ServeSettings, app: FastAPI, client: EngineClient) -> DrainingServer:
    from server.connection import HEAD_SECONDS, Connection

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Connection,
        ws="none",
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        timeout_keep_alive=int(HEAD_SECONDS),
        timeout_graceful_shutdown=int(settings.shutdown_timeout + LAST_WORDS_SECONDS) + 1,
    )
    return DrainingServer(config, app, client, drain_timeout=settings.shutdown_timeout)


def serve(settings: ServeSettings, model: str, client: EngineClient, sockets: Sequence[socket.socket]) -> int:
    """Serve ``model`` on bound ``sockets`` until told to stop. Returns the exit code."""
    give_back_memory()
    allow_many_files()
    # While the model loads, Ctrl-C ends the process at once, as SIGTERM does; asyncio would wait for the
    # loading thread. Later uvicorn handles both: it drains, then ends by the signal that it received.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    configure_logging(settings.log_level, settings.log_format)
    if not settings.api_keys() and settings.host not in LOOPBACK_HOSTS:
        log.warning("open_to_everybody", host=settings.host, advice="set --api-key or SPECVLM_API_KEY")
    # the event loop that uvicorn would choose, created before there is an app
    with asyncio.Runner(loop_factory=uvicorn.Config(app="", log_config=None).get_loop_factory()) as runner:
        return runner.run(_serve(settings, model, client, sockets))


async def _serve(
    settings: ServeSettings, model: str, client: EngineClient, sockets: Sequence[socket.socket]
) -> int:
    await client.start()  # its process loads the model while this one imports and reads the tokenizer
    try:
        with collecting_later():
            app = await asyncio.to_thread(assemble, settings, model, client)
    except (OSError, ValueError, ImportError) as error:
        log.error("model_unusable", model=model, reason=str(error))
        await client.shutdown()
        return 1
    server = make_server(settings, app, client)
    await server.serve(list(sockets))
    return server.exit_code


def assemble(settings: ServeSettings, model: str, client: EngineClient) -> FastAPI:
    from processing.processor import Processor
    from server.app import create_app
    from server.generation_config import recommended_sampling
    from server.media import MediaConfig, MediaLoader

    processor = Processor.from_pretrained(
        model,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        chat_template=settings.chat_template,
        tool_parser=settings.tool_call_parser,
    )
    media = MediaLoader(
        MediaConfig(
            allowed_domains=tuple(settings.allowed_media_domains),
            allowed_local_path=settings.allowed_local_media_path,
            max_total_pixels=settings.max_image_pixels,
        )
    )
    defaults = recommended_sampling(model, settings.revision)
    return create_app(settings, client=client, processor=processor, media=media, defaults=defaults)
