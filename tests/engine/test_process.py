"""The engine in a process of its own, and what becomes of requests when that process misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from engine.child import module_command
from engine.client import EngineDeadError, RequestRejectedError
from engine.process import Backoff, ProcessClient, RestartPolicy, Run
from engine.wire import WireError
from tests.engine.clients import collect, outputs_of, until, until_idle
from tests.engine.fake_core import BREAK, DIE, HANG, REJECT, Script, expected, make_request

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.1, max_failed_loads=3)
SLOW_STEPS = Script(step_seconds=0.002)
ENDLESS = 10**9


@pytest.fixture(autouse=True)
def temp_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the sockets live (pytest's own folders have names too long for a socket)."""
    tmp_path_factory.getbasetemp()  # is made on first use, and must not be made in ours
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)
        assert not list(Path(folder).iterdir())


def make_client(script: Script, **options: object) -> ProcessClient:
    settings: dict[str, Any] = {
        "command": module_command("tests.engine.fake_worker"),
        "restart": QUICK,
        **options,
    }
    return ProcessClient(script.config, **settings)


@asynccontextmanager
async def running(script: Script = SLOW_STEPS, **options: object) -> AsyncIterator[ProcessClient]:
    """A started client; afterwards nothing of it may be left."""
    before = children()
    client = make_client(script, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.shutdown()
        await client.shutdown()
    assert client.state in ("stopped", "failed")
    assert client.pid is None
    assert children() == before
    assert asyncio.all_tasks() <= {asyncio.current_task()}


def children() -> set[int]:
    """Zombies included."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def kill(client: ProcessClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)


async def test_many_requests_at_once() -> None:
    async with running(Script()) as client:
        assert (await client.wait_ready()).family == "fake"
        assert client.state == "ready"
        requests = [make_request(f"r{i}", i, max_tokens=1 + i % 20) for i in range(200)]
        answers = await asyncio.gather(*(collect(client, request) for request in requests))
        assert answers == [expected(request) for request in requests]
        assert client.stats.generation_tokens == sum(map(len, answers))


async def test_large_pictures_arrive_intact() -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 1000, 833), dtype=np.float32)
    assert pixels.nbytes > 9_000_000
    async with running(Script()) as client:
        await client.wait_ready()
        requests = [make_request(f"r{i}", pixels=pixels + i) for i in range(8)]
        answers = await asyncio.gather(*(collect(client, request) for request in requests))
        assert answers == [expected(request) for request in requests]


async def test_requests_are_refused_one_by_one() -> None:
    async with running() as client:
        with pytest.raises(EngineDeadError):
            await collect(client, make_request("early"))
        await client.wait_ready()
        with pytest.raises(RequestRejectedError) as caught:
            await collect(client, make_request("bad", REJECT))
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(WireError):
            await collect(client, make_request("unwritable", pixels=np.array([object()])))
        # Neither has taken its id with it.
        for name in ("bad", "unwritable"):
            assert await collect(client, make_request(name)) == expected(make_request(name))


async def test_leaving_early_aborts() -> None:
    async with running() as client:
        await client.wait_ready()
        generator = client.generate(make_request("closed", max_tokens=ENDLESS))
        await anext(generator)
        with pytest.raises(ValueError, match="in use"):
            await collect(client, make_request("closed"))
        cancelled = asyncio.create_task(collect(client, make_request("cancelled", max_tokens=ENDLESS)))
        await until(lambda: client.stats.num_running == 2)
        await generator.aclose()
        cancelled.cancel()
        await until_idle(client)
        assert await collect(client, make_request("closed")) == expected(make_request("closed"))


async def test_death_is_told_to_every_open_request_and_survived() -> None:
    async with running() as client:
        await client.wait_ready()
        first_pid = client.pid
        tasks = [
            asyncio.create_task(collect(client, make_request(f"r{i}", max_tokens=ENDLESS))) for i in range(20)
        ]
        await until(lambda: client.stats.num_running == 20)
        kill(client)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(type(result) is EngineDeadError for result in results)
        assert client.state == "restarting"
        await client.wait_ready()
        assert client.pid != first_pid
        assert await collect(client, make_request("r0")) == expected(make_request("r0"))


async def test_death_while_loading_is_survived() -> None:
    async with running(Script(load_seconds=0.5)) as client:
        await until(lambda: client.pid is not None)
        kill(client)
        await client.wait_ready()
        assert await collect(client, make_request("a")) == expected(make_request("a"))


async def test_death_while_idle_is_survived() -> None:
    async with running() as client:
        await client.wait_ready()
        kill(client)
        await until(lambda: client.state == "restarting")
        await client.wait_ready()
        assert await collect(client, make_request("a")) == expected(make_request("a"))


async def test_requests_end_once_while_the_engine_keeps_dying() -> None:
    """Clients that try again until they have their answer, and an engine killed at arbitrary moments."""
    async with running(Script(step_seconds=0.002, load_seconds=0.02)) as client:
        deaths = 0

        async def insist(name: str, max_tokens: int) -> None:
            nonlocal deaths
            request = make_request(name, max_tokens=max_tokens)
            while True:
                await client.wait_ready()
                try:
                    assert await collect(client, request) == expected(request)
                    return
                except EngineDeadError:
                    deaths += 1

        clients = asyncio.gather(*(insist(f"r{i}", 20 + 10 * i) for i in range(15)))
        for pause in (0.0, 0.03, 0.1):
            await client.wait_ready()
            await asyncio.sleep(pause)
            kill(client)
            await until(lambda: client.state == "restarting")
        await clients
        assert deaths > 0


async def test_engine_that_breaks_tells_all_and_is_restarted() -> None:
    async with running() as client:
        await client.wait_ready()
        other = asyncio.create_task(collect(client, make_request("other", max_tokens=ENDLESS)))
        await until(lambda: client.stats.num_running == 1)
        results = await asyncio.gather(
            other, collect(client, make_request("bad", BREAK)), return_exceptions=True
        )
        assert [(type(result), result.code) for result in results] == [  # type: ignore[union-attr]
            (RequestRejectedError, "internal_error")
        ] * 2
        await until(lambda: client.state == "restarting")
        await client.wait_ready()
        assert await collect(client, make_request("other")) == expected(make_request("other"))


async def test_engine_that_exits_by_itself_is_restarted() -> None:
    async with running() as client:
        await client.wait_ready()
        with pytest.raises(EngineDeadError):
            await collect(client, make_request("bad", DIE))
        await client.wait_ready()


async def test_hung_engine_is_noticed_and_replaced() -> None:
    async with running(hang_timeout=3.0) as client:
        await client.wait_ready()
        await asyncio.sleep(3.5)
        assert client.state == "ready"  # idle is not hung
        with pytest.raises(EngineDeadError):
            await collect(client, make_request("bad", HANG))
        await client.wait_ready()
        assert await collect(client, make_request("a")) == expected(make_request("a"))


async def test_model_that_cannot_be_served_is_final() -> None:
    async with running(Script(load_error="no such model")) as client:
        with pytest.raises(EngineDeadError, match="no such model"):
            await client.wait_ready()
        assert client.state == "failed"
        with pytest.raises(EngineDeadError):
            await collect(client, make_request("a"))


@pytest.mark.parametrize(("failures", "state"), [(2, "ready"), (3, "failed")])
async def test_loads_that_crash_are_tried_a_few_times(failures: int, state: str, tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.write_bytes(b"x" * failures)
    async with running(Script(failing_loads=str(failing))) as client:
        await until(lambda: client.state != "loading")
        assert client.state == state
        assert failing.read_bytes() == b""


async def test_refusal_to_load_again_is_not_final(tmp_path: Path) -> None:
    """A model that was loaded before may lack memory for a moment."""
    refused = tmp_path / "refused"
    refused.write_bytes(b"")
    async with running(Script(refused_loads=str(refused))) as client:
        await client.wait_ready()
        refused.write_bytes(b"x")
        kill(client)
        await until(lambda: client.state == "restarting")
        await client.wait_ready()
        assert refused.read_bytes() == b""


async def test_program_that_does_not_exist_fails() -> None:
    async with running(command=["/does/not/exist"]) as client:
        with pytest.raises(EngineDeadError, match="could not be started"):
            await client.wait_ready()


async def test_folder_too_long_for_a_socket_fails(temp_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = temp_folder / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    async with running() as client:
        with pytest.raises(EngineDeadError, match="no sockets"):
            await client.wait_ready()
    folder.rmdir()


async def test_wait_ready_times_out() -> None:
    async with running(Script(load_seconds=3600)) as client:
        with pytest.raises(TimeoutError):
            await client.wait_ready(timeout=0.05)


async def test_sockets_are_private(temp_folder: Path) -> None:
    async with running() as client:
        await client.wait_ready()
        (folder,) = os.listdir(temp_folder)
        assert os.stat(temp_folder / folder).st_mode & 0o777 == 0o700
        assert sorted(os.listdir(temp_folder / folder)) == ["reports", "requests"]


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
    client = make_client(SLOW_STEPS)
    await client.shutdown()
    with pytest.raises(RuntimeError):
        await client.start()
    with pytest.raises(EngineDeadError):
        await client.wait_ready()


@pytest.mark.parametrize("stop", ["hang", "freeze"])
async def test_shutdown_ends_an_engine_that_does_not_listen(
    stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.process.SHUTDOWN_SECONDS", 0.1)
    monkeypatch.setattr("engine.child.TERMINATE_SECONDS", 0.1)
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
        client = make_client(SLOW_STEPS)
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


def test_restarts_come_slower_until_an_engine_runs_well() -> None:
    policy = RestartPolicy(first_delay=1.0, max_delay=5.0, healthy_seconds=60.0, max_failed_loads=2)
    backoff = Backoff(policy)
    crash = Run(ready_at=0.0, ended_at=1.0)
    assert [backoff.after(crash) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.after(Run(ready_at=0.0, ended_at=60.0)) == 1.0
    assert backoff.after(Run()) == 2.0  # never became ready
    assert backoff.after(crash) == 4.0
    assert backoff.after(Run()) == 5.0
    assert backoff.after(Run()) is None
