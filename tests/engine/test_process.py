"""The engine in a process of its own, and what becomes of requests when that process misbehaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from engine.client import EngineDeadError, RequestRejectedError
from engine.ipc.process import Backoff, RestartPolicy, Run
from engine.ipc.wire import WireError
from tests.engine.clients import collect, until, until_idle
from tests.engine.fake_core import BREAK, COMPUTE, DIE, HANG, REJECT, Script, expected, make_request
from tests.engine.processes import ENDLESS, kill, running


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


async def test_who_has_left_is_there_until_the_engine_has_heard_of_it() -> None:
    async with running() as client:
        await client.wait_ready()
        names, told = ["a", "b", "c"], []
        streams = [client.generate(make_request(name, max_tokens=ENDLESS)) for name in names]
        for stream in streams:
            await anext(stream)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        for stream in streams:
            await stream.aclose()
        client.when_ended(["never", "a", "b"], lambda: told.append("a and b"))
        client.when_ended(["never"], lambda: told.append("never"))
        await asyncio.sleep(0.2)
        assert told == ["never"]
        os.kill(client.pid, signal.SIGCONT)
        await until(lambda: told == ["never", "a and b"])
        stream = client.generate(make_request("d", max_tokens=ENDLESS))
        await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        await stream.aclose()
        client.when_ended(["d"], lambda: told.append("d"))
        kill(client)
        await until(lambda: told[-1] == "d")


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
        assert client.stats.num_running == 0
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


async def test_an_engine_that_computes_for_long_does_not_hang() -> None:
    """Not on a CPU: others would lose their answers to a client's large picture, again and again."""
    async with running(hang_timeout=2.0) as client:
        await client.wait_ready()
        slow, other = make_request("slow", COMPUTE), make_request("other")
        answers = await asyncio.gather(collect(client, slow), collect(client, other))
        assert answers == [expected(slow), expected(other)]


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


NONSENSE = """
import sys, time, json, zmq
spec = json.loads(sys.stdin.readline())
socket = zmq.Context().socket(zmq.PUSH)
socket.connect(spec["reports_address"])
socket.send(b"nonsense")
time.sleep(3600)
"""


async def test_engine_that_sends_nonsense_is_not_kept() -> None:
    async with running(command=[sys.executable, "-c", NONSENSE]) as client:
        with pytest.raises(EngineDeadError, match="invalid message"):
            await client.wait_ready()


async def test_program_that_does_not_exist_fails() -> None:
    async with running(command=["/does/not/exist"]) as client:
        with pytest.raises(EngineDeadError, match="could not be started"):
            await client.wait_ready()


async def test_folder_too_long_for_a_socket_fails() -> None:
    async with running() as client:  # which has not had its turn to start anything yet
        with (
            tempfile.TemporaryDirectory(prefix="x" * 100) as folder,
            mock.patch.object(tempfile, "tempdir", folder),
        ):
            with pytest.raises(EngineDeadError, match="cannot open sockets"):
                await client.wait_ready()
            assert os.listdir(folder) == []


async def test_wait_ready_times_out() -> None:
    async with running(Script(load_seconds=3600)) as client:
        with pytest.raises(TimeoutError):
            await client.wait_ready(timeout=0.05)


async def test_sockets_are_private() -> None:
    async with running() as client:
        await client.wait_ready()
        (folder,) = Path(tempfile.gettempdir()).iterdir()  # noqa: ASYNC240
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sorted(os.listdir(folder)) == ["reports", "requests"]


def _environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_engine_is_told_to_spin_less_unless_its_user_says_how() -> None:
    """Torch's threads that spin for milliseconds take the cores from those of the kernels."""
    with mock.patch.dict(os.environ):
        os.environ.pop("OMP_WAIT_POLICY", None)
        os.environ.pop("GOMP_SPINCOUNT", None)
        async with running() as client:
            await client.wait_ready()
            assert "GOMP_SPINCOUNT=1000" in _environ(client.pid)
        os.environ["OMP_WAIT_POLICY"] = "active"
        async with running() as client:
            await client.wait_ready()
            assert not any(entry.startswith("GOMP_SPINCOUNT") for entry in _environ(client.pid))


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
