"""Fetches, reads and decodes pictures and videos from URLs, with limits, off the event loop.

Restrictive by default: only public addresses; each name is looked up once and the connection made to the
address that was checked; no redirects, no proxies, no files unless a folder is allowed. Knows neither
requests nor models; ``media_url`` checks addresses, and ``media_decoder`` decodes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import httpx
from PIL import Image

from server.media_budget import PixelBudget, PixelShare
from server.media_decoder import Decoders
from server.media_image import read_base64, read_data_url, too_large
from server.media_url import MediaError, MediaUnavailable, WebURL, host_allowed, is_public, parse_web_url
from server.media_video import Video, frames_in, is_animation, sampled
from server.media_wire import Look

__all__ = ["MediaConfig", "MediaError", "MediaLoader", "MediaUnavailable", "Pictures", "Video"]

T = TypeVar("T")
Resolve = Callable[[str, int], Awaitable[list[str]]]

MAX_ADDRESSES: Final = 4
CONNECT_SECONDS: Final = 3.0
HEADERS: Final = {
    "Accept": "image/png, image/jpeg, image/webp, image/gif",
    "Accept-Encoding": "identity",  # so that received bytes are what is counted
    "User-Agent": "specvlm",
}
FILE_REFUSED: Final = "This file: URL does not point to a file that this server may read."


@dataclass(frozen=True, slots=True)
class MediaConfig:
    """``allowed_domains``: where http(s) pictures may come from, subdomains included; empty allows every
    public host. ``allowed_local_path``: the folder below which ``file:`` URLs may point; ``None`` allows
    none. ``timeout_s`` bounds a download as a whole, from looking up the name to the last byte.

    ``max_bytes`` and ``max_pixels`` apply to one picture, ``max_request_bytes`` to those of one request.
    ``max_total_pixels`` applies to those of one request, with every frame of an animation, and to all that
    are held at a time, at 4 bytes a pixel (7 when it arrives from its decoder); pictures beyond it wait.
    ``decoders`` is the number of processes that decode.
    """

    allowed_domains: tuple[str, ...] = ()
    allowed_local_path: Path | None = None
    max_bytes: int = 32 * 2**20
    max_pixels: int = 40_000_000
    max_request_bytes: int = 64 * 2**20
    max_total_pixels: int = 100_000_000
    timeout_s: float = 10.0
    max_downloads: int = 16
    decoders: int = 4


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, from the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, slots=True)
class Pictures:
    """The decoded images of one request, RGB and upright: one per picture, all frames of a video. Threads
    must process them through ``run``, so that their memory stays accounted for.
    """

    images: list[list[Image.Image]]
    share: PixelShare

    async def run(self, pool: Executor, call: Callable[..., T], *args: object) -> T:
        return await self.share.run(pool, call, *args)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that was looked at but not decoded yet, and what to decode of it."""

    data: bytes
    indices: tuple[int, ...]
    num_pixels: int


@dataclass(slots=True)
class _Tally:
    """A running total over the pictures of one request."""

    limit: int
    unit: str
    count: int = 0

    def add(self, count: int) -> None:
        self.count += count
        if self.count > self.limit:
            message = f"The images of a request may have up to {self.limit} {self.unit} in total; send fewer."
            raise MediaError("images_too_large", message)


@dataclass(frozen=True, slots=True)
class _Allowance:
    """What one request may use. ``turns``: decoders at a time, so that other requests find one free."""

    num_bytes: _Tally
    num_pixels: _Tally
    turns: asyncio.Semaphore


class MediaLoader:
    """``resolver`` and ``transport`` exist for tests, which pretend that their own server is public."""

    def __init__(
        self,
        config: MediaConfig = MediaConfig(),
        *,
        resolver: Resolve = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._config = config
        self._resolve = resolver
        self._downloads = asyncio.Semaphore(config.max_downloads)
        self._pixels = PixelBudget(config.max_total_pixels)
        self._pool = ThreadPoolExecutor(config.decoders, "media")
        self._readers = ThreadPoolExecutor(2, "media-read")  # of base64 and files, which wait for no decoder
        self._decoders = Decoders(config.decoders, config.max_pixels)
        # No connection is reused: one made for a host must not serve another with the same address.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(config.timeout_s, connect=min(CONNECT_SECONDS, config.timeout_s))
        self._client = httpx.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, limits=limits, timeout=timeout
        )

    @asynccontextmanager
    async def load(self, sources: Sequence[str | Video]) -> AsyncIterator[Pictures]:
        """Load the pictures (given by URL) and videos of one request, in memory until the context ends.
        Raises ``MediaError``, and ``MediaUnavailable`` if pictures cannot be decoded now.
        """
        config = self._config
        allowance = _Allowance(
            num_bytes=_Tally(config.max_request_bytes, "bytes"),
            num_pixels=_Tally(config.max_total_pixels, "pixels"),
            turns=asyncio.Semaphore(max(1, config.decoders - 1)),
        )
        opened = await together(
            self._open_video(one, allowance) if isinstance(one, Video) else self._open_one(one, allowance)
            for one in sources
        )
        share = await self._pixels.take(sum(one.num_pixels for own in opened for one in own))
        try:
            sizes = list(map(len, opened))
            decoding = [self._decode(one, share, allowance) for own in opened for one in own]
            opened.clear()  # they hold the files
            found = iter(await together(decoding))
            yield Pictures([list(chain.from_iterable(islice(found, size))) for size in sizes], share)
        finally:
            share.close()

    async def _open_one(self, url: str, allowance: _Allowance) -> list[_Opened]:
        return [await self._open(await self._data(url), allowance)]

    async def _open_video(self, video: Video, allowance: _Allowance) -> list[_Opened]:
        found: list[_Opened] = []
        most = video.max_frames if is_animation(video.url) else 1
        for frame in frames_in(video.url):
            data = await self._read_in_thread(read_base64, frame, self._config.max_bytes)
            found.append(await self._open(data, allowance, most))
        return found

    async def _open(self, data: bytes, allowance: _Allowance, max_frames: int = 1) -> _Opened:
        allowance.num_bytes.add(len(data))
        config = self._config
        task = Look(max_frames > 1, config.max_pixels, config.max_total_pixels)
        async with allowance.turns:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._pool, self._decoders.look, data, task)
        size = found.width * found.height
        allowance.num_pixels.add(size * found.num_frames)
        shown = sampled(found.num_frames - found.first, max_frames)
        return _Opened(data, tuple(found.first + index for index in shown), size * len(shown))

    async def _decode(self, one: _Opened, share: PixelShare, allowance: _Allowance) -> list[Image.Image]:
        async with allowance.turns:
            return await share.run(self._pool, self._decoders.decode, one.data, one.indices)

    async def _data(self, url: str) -> bytes:
        config = self._config
        scheme = url[: max(url.find(":", 0, 8), 0)].lower()
        if scheme == "data":
            return await self._read_in_thread(read_data_url, url, config.max_bytes)
        if scheme in ("http", "https"):
            return await self._fetch(parse_web_url(url))
        if scheme == "file":
            return await self._read_in_thread(_read_file, url, config.allowed_local_path, config.max_bytes)
        raise MediaError(
            "invalid_image_url", "An image URL must begin with 'https://', 'http://' or 'data:'."
        )

    async def aclose(self) -> None:
        await self._client.aclose()
        self._decoders.close()
        for pool in (self._readers, self._pool):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _read_in_thread(self, call: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, call, *args)

    async def _fetch(self, url: WebURL) -> bytes:
        if not host_allowed(url.host, self._config.allowed_domains):
            raise MediaError("forbidden_image_host", "Images from this host are not allowed.")
        async with self._downloads:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    return await self._download(url, await self._vetted(url))
            except TimeoutError:
                raise MediaError("image_timeout", "The image's host took too long to send it.") from None

    async def _vetted(self, url: WebURL) -> list[str]:
        """Return the addresses to connect to, from the only lookup. Raises an error if any is not public."""
        try:
            addresses = [url.address] if url.address else await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            addresses = []
        if not addresses or not all(map(is_public, addresses)):
            # One message for both cases, or clients could find out which internal names exist.
            raise MediaError("forbidden_image_host", "The image's host is unknown or not public.")
        return addresses[:MAX_ADDRESSES]

    async def _download(self, url: WebURL, addresses: list[str]) -> bytes:
        for address in addresses:
            request = self._client.build_request(
                "GET",
                url.at(address),
                headers={**HEADERS, "Host": url.host_header},
                extensions={"sni_hostname": url.host},  # certificates are checked against the name
            )
            try:
                response = await self._client.send(request, stream=True)
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
            except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError):
                break
        raise MediaError("image_fetch_failed", "The image could not be fetched from its host.")

    async def _read(self, response: httpx.Response) -> bytes:
        if response.has_redirect_location:
            raise MediaError(
                "image_fetch_failed", "The image URL redirects elsewhere; send the final address."
            )
        if response.status_code != 200:
            raise MediaError("image_fetch_failed", "The image's host did not respond with status 200.")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._config.max_bytes:
                raise too_large(self._config.max_bytes)
        return bytes(body)


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all calls concurrently; the first that fails stops the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _read_file(url: str, allowed: Path | None, max_bytes: int) -> bytes:
    """Return the content of ``file:///…``, which must lie below ``allowed`` with symbolic links resolved."""
    refused = MediaError("forbidden_image_file", FILE_REFUSED)
    _, _, path = url.partition("://")
    try:
        path = unquote(path.removeprefix("localhost"), errors="strict")
        if allowed is None or not path.startswith("/"):
            raise refused
        real = Path(path).resolve(strict=True)
        if not real.is_relative_to(allowed.resolve(strict=True)):
            raise refused
        # Do not follow a link created in the meantime, nor wait for someone to write to a pipe.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused
            data = file.read(max_bytes + 1)
    except (OSError, ValueError, RuntimeError):
        raise refused from None
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data
