"""Hundreds of mixed requests at once: none is lost, none is wrong, and everything is given back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from tests.conftest import BuildCheckpoint
from tests.hostile.mix import Answer, Request, draw, send
from tests.http.conftest import LiveServer, serve
from tests.http.test_live_openai import memory, metric, wait_idle

AT_ONCE = 64
GROWTH = 96 << 20


async def answers_alone(server: LiveServer, requests: list[Request]) -> dict[str, Answer]:
    """What each different one is answered with nothing beside it."""
    found: dict[str, Answer] = {}
    async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as client:
        for request in requests:
            if request.leaves_after is None and request.key not in found:
                answer = await send(client, request)
                assert answer is not None
                found[request.key] = answer
    return found


async def crowd(server: LiveServer, requests: list[Request]) -> list[Answer | None]:
    limit = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120, limits=limits) as client:

        async def one(request: Request) -> Answer | None:
            async with limit:
                return await send(client, request)

        return await asyncio.gather(*(one(request) for request in requests))


async def healthy(server: LiveServer, stop: asyncio.Event) -> list[float]:
    """Seconds that ``/health`` took, asked twenty times a second from a connection of its own."""
    took = []
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        while not stop.is_set():
            began = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
    return took


def check(requests: list[Request], answers: list[Answer | None], alone: dict[str, Answer]) -> Counter[str]:
    """How many there were of each kind, once every answer is what it is alone."""
    kinds: Counter[str] = Counter()
    for request, answer in zip(requests, answers, strict=True):
        if request.leaves_after is not None:
            kinds["left"] += 1
            continue
        assert answer is not None
        assert answer.status == request.status, request
        assert answer == alone[request.key], f"another answer in a crowd: {request}"
        kinds["answered" if answer.status == 200 else "refused"] += 1
    return kinds


async def test_500_mixed_requests_are_answered_as_each_is_alone(
    tiny: BuildCheckpoint, tmp_path: Path
) -> None:
    requests = draw(seed=1, count=500)
    with serve(tiny("llava"), tmp_path, "--max-num-queued-reqs", "512") as server:
        alone = await answers_alone(server, requests)
        assert len({tuple(answer.texts.items()) for answer in alone.values() if answer.texts}) > 50
        await crowd(server, requests[:100])  # caches and pools have their size
        await asyncio.to_thread(wait_idle, server)
        before, stop = memory(server), asyncio.Event()
        health = asyncio.create_task(healthy(server, stop))
        kinds = check(requests, await crowd(server, requests), alone)
        stop.set()
        await health  # each was a 200; how soon is the soak test's
        assert kinds["answered"] > 350
        assert min(kinds["left"], kinds["refused"]) > 20
        await asyncio.to_thread(wait_idle, server)
        assert metric(server, "specvlm:kv_cache_usage_perc") == 0.0, "pages are not free or cached"
        assert memory(server) - before < GROWTH


@pytest.mark.slow
@pytest.mark.timeout(45 * 60)
async def test_half_an_hour_of_it(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    """A line a minute says how it goes: ``make test-slow ARGS="-k half_an_hour -s"``."""
    deadline, total, took = time.monotonic() + 30 * 60, 0, list[float]()
    with serve(tiny("llava"), tmp_path, "--max-num-queued-reqs", "512") as server:
        alone = await answers_alone(server, draw(seed=1, count=500))
        await crowd(server, draw(seed=1, count=500))
        await asyncio.to_thread(wait_idle, server)
        before, said = memory(server), time.monotonic()
        while time.monotonic() < deadline:
            requests, stop = draw(seed=1, count=500), asyncio.Event()
            health = asyncio.create_task(healthy(server, stop))
            check(requests, await crowd(server, requests), alone)
            stop.set()
            took += await health
            total += len(requests)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(
                    f"{total} requests, {(memory(server) - before) >> 20} MiB more, health {p99(took):.3f} s"
                )
        await asyncio.to_thread(wait_idle, server)
        assert metric(server, "specvlm:kv_cache_usage_perc") == 0.0
        assert memory(server) - before < GROWTH
        assert p99(took) < 0.1


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]
