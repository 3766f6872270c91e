"""A real server whose engine is killed, that is told to end under load, that has no disk: every request ends
once, nothing hangs, and what comes after is answered as before.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.speculation.costs import CostTable, save_tables
from tests.conftest import BuildCheckpoint
from tests.http.conftest import READY_SECONDS, LiveServer, serve, wait_ready

QUESTION = {"messages": [{"role": "user", "content": "Tell me something."}], "temperature": 0}
SHORT = QUESTION | {"max_tokens": 12}
LONG = QUESTION | {"max_tokens": 150, "ignore_eos": True}


def until(condition: Callable[[], Any], seconds: float = READY_SECONDS) -> Any:
    """What ``condition`` says when it says something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def engine_of(server: LiveServer) -> psutil.Process:
    """The engine's process, as soon as there is one."""
    server_process = psutil.Process(server.process.pid)
    found: list[psutil.Process] = until(server_process.children)
    return found[0]


def is_ready(server: LiveServer) -> bool:
    return httpx.get(f"{server.url}/ready", timeout=20).status_code == 200


def kill_engine(server: LiveServer) -> None:
    engine_of(server).kill()
    until(lambda: not is_ready(server))


def ask(server: LiveServer) -> str:
    response = httpx.post(f"{server.base_url}/chat/completions", json=SHORT, timeout=60)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def end_of(client: httpx.AsyncClient, body: dict[str, Any], streams: asyncio.Event) -> str:
    """How a request ended: ``whole`` or ``streamed``, the code of its error, or ``lost`` without a word.

    ``streams`` is set when the first event of an answer comes.
    """
    events: list[str] = []
    try:
        async with client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                return json.loads(await response.aread())["error"]["code"]
            if not body.get("stream"):
                await response.aread()
                return "whole"
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    streams.set()
                    events.append(line.removeprefix("data: "))
    except httpx.TransportError:
        return "lost"
    if events and events[-1] == "[DONE]":
        return "streamed"
    assert sum('"error"' in event for event in events) <= 1
    return json.loads(events[-1])["error"]["code"] if events and "error" in events[-1] else "lost"


async def ends_of(
    server: LiveServer, bodies: list[dict[str, Any]], then: Callable[[], object], *, streaming: bool = True
) -> list[str]:
    """How requests ended when ``then`` was done while they were under way: as soon as one is ``streaming``,
    or, where none will, after a second.
    """
    streams = asyncio.Event()
    async with httpx.AsyncClient(base_url=server.base_url, timeout=120) as client:
        tasks = [asyncio.create_task(end_of(client, body, streams)) for body in bodies]
        await (streams.wait() if streaming else asyncio.sleep(1))
        await asyncio.to_thread(then)
        return await asyncio.gather(*tasks)


@pytest.mark.slow
async def test_an_engine_killed_at_every_stage_comes_back(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    with serve(tiny("llama"), tmp_path, "--max-num-seqs", "4", ready=False) as server:
        engine_of(server).kill()  # while it loads, for the first time
        wait_ready(server)
        before = ask(server)

        kill_engine(server)  # idle
        engine_of(server).kill()  # and again while it loads
        until(lambda: is_ready(server))
        assert ask(server) == before

        engine_of(server).suspend()  # so that all of them are open and none has a token
        bodies = [SHORT, SHORT | {"stream": True}] * 4
        ends = await ends_of(server, bodies, engine_of(server).kill, streaming=False)
        assert "engine_dead" in ends
        assert set(ends) <= {"engine_dead", "engine_unavailable"}  # the latter where one came late
        until(lambda: is_ready(server))
        assert ask(server) == before

        bodies = [LONG | {"stream": True}, LONG | {"stream": True, "n": 2}, LONG] * 8
        for _ in range(2):  # and again as soon as it answers
            ends = await ends_of(server, bodies, engine_of(server).kill)
            assert ends.count("engine_dead") > 0
            assert set(ends) <= {"engine_dead", "streamed", "whole"}
            until(lambda: is_ready(server))
        assert ask(server) == before


@pytest.mark.parametrize("grace", [0, pytest.param(60, marks=pytest.mark.slow)])
async def test_told_to_end_under_load_every_request_hears_of_it(
    tiny: BuildCheckpoint, tmp_path: Path, grace: int
) -> None:
    with serve(tiny("llama"), tmp_path, "--shutdown-timeout", str(grace), "--max-num-seqs", "4") as server:
        engine = engine_of(server)
        bodies = [LONG | {"stream": i % 2 == 0, "n": 1 + i % 3} for i in range(24)]
        ends = await ends_of(server, bodies, lambda: server.process.send_signal(signal.SIGTERM))
        assert await asyncio.to_thread(server.process.wait, 60) in (0, -signal.SIGTERM)
        assert not engine.is_running()
    if grace:
        assert ends == ["streamed", "whole"] * 12
    else:
        assert set(ends) <= {"streamed", "whole", "shutting_down"}
        assert "shutting_down" in ends


def test_a_cache_folder_that_cannot_be_written_costs_speed_only(
    tiny: BuildCheckpoint, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = str(tmp_path / "file" / "cache")
    with serve(tiny("llama"), tmp_path, XDG_CACHE_HOME=cache) as server:
        assert ask(server)
        log = server.log.read_text()
    assert cache in log
    assert "Traceback" not in log


def test_a_full_disk_costs_speed_only_and_no_file_is_left_half(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    """Full for files beyond 32 KiB: neither kernels nor tables, which are long already, can be kept."""
    cache, most = tmp_path / "cache" / "specvlm", 1 << 15
    cache.mkdir(parents=True)
    kept = cache / "costs.json"
    save_tables(kept, {"of another model " * 2500: CostTable({1: 1.0})})
    before = kept.read_bytes()
    with serve(tiny("llama"), tmp_path, ready=False, XDG_CACHE_HOME=str(cache.parent)) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_ready(server)
        assert ask(server)
        log = server.log.read_text()
    assert "the cost tables could not be stored" in log
    assert "Traceback" not in log
    assert kept.read_bytes() == before
    assert [file for file in cache.rglob("*") if file.is_file()] == [kept]
