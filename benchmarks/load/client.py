"""Sends and times requests: one, or a closed loop of many. Knows HTTP, not the content of requests.

It uses aiohttp because httpx took twice the CPU time to read 64 streams, and a client that cannot keep up
adds gaps between tokens of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence

import aiohttp

from benchmarks.load.stream import Recording, error_message

CONNECT_SECONDS = 10.0


async def open_session(api_key: str | None, timeout: float) -> aiohttp.ClientSession:
    """Open a session without a limit on connections. ``timeout``: seconds for a whole request."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
    )


async def record(http: aiohttp.ClientSession, url: str, body: bytes) -> Recording:
    """Send ``body`` and record the response with its timing. Failures are recorded, not raised."""
    recording = Recording(time.perf_counter())
    try:
        async with http.post(url, data=body, allow_redirects=False) as response:
            if response.status == 200:
                async for piece in response.content.iter_any():
                    recording.reads.append((time.perf_counter(), piece))
            else:
                recording.error = f"{response.status}: {reason(await response.read())}"
    except TimeoutError:
        recording.error = f"timed out after {time.perf_counter() - recording.start:.0f} s"
    except aiohttp.ClientError as error:
        recording.error = str(error) or type(error).__name__
    recording.end = time.perf_counter()
    return recording


def reason(body: bytes) -> str:
    """Return the message of a response other than 200: OpenAI's, or the beginning of the body."""
    try:
        said = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace") or "no reason given"
    return error_message(said.get("error") or said if isinstance(said, dict) else said)


async def closed_loop(
    http: aiohttp.ClientSession,
    url: str,
    bodies: Sequence[bytes],
    concurrency: int,
    on_end: Callable[[], object],
) -> tuple[float, list[Recording]]:
    """Send ``bodies`` with ``concurrency`` callers, each sending the next one when its last answer has ended.

    Returns the seconds from the first request to the end of the last, and the recordings in the order of
    ``bodies``.
    """
    recordings: dict[int, Recording] = {}
    waiting = iter(enumerate(bodies))

    async def caller() -> None:
        for index, body in waiting:
            recordings[index] = await record(http, url, body)
            on_end()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(caller())
    return time.perf_counter() - start, [recordings[index] for index in range(len(bodies))]
