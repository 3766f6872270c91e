"""A live server on a free port, driven by real clients."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from server.app import create_app
from server.logs import configure_logging
from server.media import MediaError, Pictures, Video
from server.media_budget import PixelShare
from server.media_video import frames_in
from server.run import DrainingServer, make_server
from server.sampling import SamplingDefaults
from server.settings import ServeSettings
from tests.server.fakes import ByteProcessor, FakeEngineClient

MODEL = "fake-vlm"


@contextmanager
def quiet_logs() -> Iterator[None]:
    """No noise from servers in threads; other modules' tests see the log as it was."""
    root = logging.getLogger()
    level = root.level
    configure_logging("error", "json")
    ours = list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers = [handler for handler in root.handlers if handler not in ours]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    with quiet_logs():
        yield


@pytest.fixture(autouse=True, scope="session")
def _alone() -> None:
    """No settings from outside."""
    for name in [name for name in os.environ if name.startswith("SPECVLM_")]:
        del os.environ[name]


class FakeMedia:
    """Pictures by colour: ``color:red``; in a video colours are frames. Anything else is refused."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.delay = 0.0

    @asynccontextmanager
    async def load(self, sources: Sequence[str | Video]) -> AsyncIterator[Pictures]:
        urls = [source for source in sources if isinstance(source, str)]
        frames = {source: frames_in(source.url) for source in sources if isinstance(source, Video)}
        if urls:
            await asyncio.sleep(self.delay)
        self.loaded += [source if isinstance(source, str) else source.url for source in sources]
        if not all(url.startswith("color:") for url in urls):
            raise MediaError("invalid_image_url", "This URL cannot be read.")
        images = [
            [Image.new("RGB", (8, 8), one.removeprefix("color:")) for one in frames.get(source, [source])]
            for source in sources
        ]
        yield Pictures(images, PixelShare(0, lambda _: None))

    async def aclose(self) -> None:
        pass


@dataclass
class Live:
    """A running server and what is behind it."""

    url: str
    engine: FakeEngineClient
    media: FakeMedia
    server: DrainingServer
    thread: threading.Thread

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self._client_options(options))

    def async_openai(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**self._client_options(options))

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, **options)

    def _client_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 20} | options


StartServer = Callable[..., Live]


def start_live(*, defaults: SamplingDefaults | None = None, loads: bool = True, **settings: Any) -> Live:
    processor = ByteProcessor()
    engine, media = FakeEngineClient(processor), FakeMedia()
    engine.loads = loads
    serve = ServeSettings(**({"port": 0, "served_model_name": [MODEL], "shutdown_timeout": 1} | settings))
    engine.visual_compression = serve.target_visual_compression
    app = create_app(serve, client=engine, processor=processor, media=media, defaults=defaults)
    server = make_server(serve, app, engine)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    return Live(server.url(), engine, media, server, thread)


def stop_live(live: Live) -> None:
    live.engine.stalled = False
    live.server.should_exit = True
    live.thread.join(timeout=10)
    assert not live.thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start servers with settings of their own; they are stopped after the test."""
    started: list[Live] = []

    def start(**options: Any) -> Live:
        started.append(start_live(**options))
        return started[-1]

    yield start
    for live in started:
        stop_live(live)


@pytest.fixture(scope="session")
def shared_live() -> Iterator[Live]:
    live = start_live()
    yield live
    stop_live(live)


@pytest.fixture
def live(shared_live: Live) -> Iterator[Live]:
    """A server with default settings, shared by tests; its engine starts afresh for each, and ends idle."""
    shared_live.engine.reset()
    yield shared_live
    shared_live.engine.reset()
    wait_until(lambda: shared_live.server._app.state.server.admission.num_open == 0)


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with live.openai() as client:
        yield client


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with live.http() as http:
        yield http
