"""A real server on this machine that media tests pretend is a public one."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from PIL import Image

from server.media import MediaConfig, MediaError, MediaLoader

PUBLIC = "93.184.216.34"
RED = (254, 0, 0)
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def red_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), RED).save(buffer, "PNG")
    return buffer.getvalue()


def reply(body: bytes = b"", status: str = "200 OK", headers: str = "") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    return answer


def forever(piece: bytes, pause: float, head: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


@dataclass
class Host:
    """``requests``: what arrived. ``open``: answers being given, ``peak``: most at one time."""

    answer: Answer
    port: int = 0
    requests: list[str] = field(default_factory=list)
    open: int = 0
    peak: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            self.open += 1
            self.peak = max(self.peak, self.open)
            await self.answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    host = Host(answer)
    server = await asyncio.start_server(host, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()


class ToThisMachine(httpx.AsyncBaseTransport):
    """Connects to 127.0.0.1 in the place of a public address; everything else is the real thing."""

    def __init__(self, port: int, verify: ssl.SSLContext | bool = True) -> None:
        self._inner = httpx.AsyncHTTPTransport(verify=verify, trust_env=False)
        self._port = port
        self.addresses: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.addresses.append(request.url.host)
        if request.url.host == "203.0.114.1":
            raise httpx.ConnectError("unreachable")
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


class Names:
    """A resolver that counts, and that may change its mind after the first answer (DNS rebinding)."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = answers or ([PUBLIC],)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


async def load_one(loader: MediaLoader, url: str) -> Image.Image:
    async with loader.load([url]) as pictures:
        return pictures.images[0][0]


@dataclass
class Fetched:
    image: Image.Image | None
    error: MediaError | None
    addresses: list[str]


async def fetch(
    host: Host,
    url: str = "http://pictures.example/a.png",
    names: Names | None = None,
    verify: ssl.SSLContext | bool = True,
    **config: object,
) -> Fetched:
    transport = ToThisMachine(host.port, verify)
    loader = MediaLoader(
        MediaConfig(**config),  # type: ignore[arg-type]
        resolver=names or Names(),
        transport=transport,
    )
    try:
        return Fetched(await load_one(loader, url), None, transport.addresses)
    except MediaError as error:
        return Fetched(None, error, transport.addresses)
    finally:
        await loader.aclose()


def code(fetched: Fetched) -> str | None:
    if fetched.error is None:
        return None
    assert not {"127.0.0.1", PUBLIC} & set(fetched.error.message.split())  # no address is told
    return fetched.error.code
