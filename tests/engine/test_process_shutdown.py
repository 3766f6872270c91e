"""However an engine process is ended, its requests hear of it and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from engine.client import EngineDeadError
from tests.engine.clients import collect, outputs_of, until
from tests.engine.fake_core import HANG, Script, expected, make_request
from tests.engine.processes import ENDLESS, children, kill, make_client, running


async def test_shutdown_waits_for_open_requests_then_aborts_them() -> None:
    async with running() as client:
        await client.wait_ready()
        short = asyncio.create_task(collect(client, make_request("short", max_tokens=10)))
        endless = asyncio.create_task(outputs_of(client, make_request("endless", max_tokens=ENDLESS)))
        await until(lambda: client.stats.num_running == 2)
        stopping = asyncio.create_task(client.shutdown(timeout=1.0))
        await until(lambda: client.state == "stopped")
        with pytest.raises(EngineDeadError):
            await collect(client, make_request("late"))
        await stopping
        assert len(await short) == 10
        assert (await endless)[-1].finish_reason == "abort"


@pytest.mark.parametrize("load_seconds", [0.0, 3600.0])
async def test_shutdown_at_any_moment_of_loading(load_seconds: float) -> None:
    for pause in (0.0, 0.001, 0.1):
        async with running(Script(load_seconds=load_seconds)):
            await asyncio.sleep(pause)


async def test_shutdown_before_start_and_start_after_shutdown() -> None:
    client = make_client()
    await client.shutdown()
    with pytest.raises(RuntimeError):
        await client.start()
    with pytest.raises(EngineDeadError):
        await client.wait_ready()


@pytest.mark.parametrize("stop", ["hang", "freeze"])
async def test_shutdown_ends_an_engine_that_does_not_listen(
    stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.ipc.process.LAST_STEP_SECONDS", 0.1)
    monkeypatch.setattr("engine.ipc.process.SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr("engine.ipc.child.TERMINATE_SECONDS", 0.1)
    async with running() as client:
        await client.wait_ready()
        await collect(client, make_request("first"))
        token = HANG if stop == "hang" else 1
        task = asyncio.create_task(collect(client, make_request("a", token, max_tokens=ENDLESS)))
        await asyncio.sleep(0.1)
        if stop == "freeze":
            assert client.pid is not None
            os.kill(client.pid, signal.SIGSTOP)  # only SIGKILL ends it now
        await client.shutdown()
        with pytest.raises(EngineDeadError):
            await task


async def test_who_waits_for_a_hung_engine_hears_of_the_end_before_it_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server cancels what is open a few seconds after the time that it gives; killing may take longer."""
    monkeypatch.setattr("engine.ipc.process.LAST_STEP_SECONDS", 0.1)
    async with running() as client:
        await client.wait_ready()
        task = asyncio.create_task(collect(client, make_request("a", max_tokens=ENDLESS)))
        await until(lambda: client.stats.num_running == 1)
        assert client.pid is not None
        engine = psutil.Process(client.pid)
        engine.send_signal(signal.SIGSTOP)
        stopping = asyncio.create_task(client.shutdown())
        with pytest.raises(EngineDeadError):
            await asyncio.wait_for(task, 5)
        assert not stopping.done()
        engine.kill()
        await stopping


async def test_death_during_shutdown_ends_it() -> None:
    async with running() as client:
        await client.wait_ready()
        task = asyncio.create_task(collect(client, make_request("a", max_tokens=ENDLESS)))
        await until(lambda: client.stats.num_running == 1)
        stopping = asyncio.create_task(client.shutdown(timeout=3600))
        await asyncio.sleep(0.01)
        kill(client)
        await stopping
        with pytest.raises(EngineDeadError):
            await task
        assert client.state == "stopped"


async def test_cycles_leave_no_descriptors_behind() -> None:
    async def cycle() -> int:
        async with running() as client:
            await client.wait_ready()
            await collect(client, make_request("a", pixels=np.zeros(100_000)))
        return psutil.Process().num_fds()

    await cycle()  # libraries open some for good on first use
    assert await cycle() == await cycle()


async def test_unclosed_loop_still_ends_the_engine() -> None:
    """``asyncio.run`` cancels what is left; nobody called ``shutdown``."""
    before = children()

    async def forgetful() -> None:
        client = make_client()
        await client.start()
        await client.wait_ready()

    await asyncio.to_thread(asyncio.run, forgetful())
    assert children() == before


async def test_works_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def session() -> None:
        async with running() as client:
            await client.wait_ready()
            request = make_request("a", pixels=np.zeros(100_000))
            assert await collect(client, request) == expected(request)
            kill(client)
            await until(lambda: client.state == "restarting")
            await client.wait_ready()

    def run(main: Callable[[], object]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())  # type: ignore[arg-type]

    await asyncio.to_thread(run, session)
