"""What the operating system refuses the server for a moment, such as a file descriptor, costs no engine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import Any
from unittest import mock

import psutil
import pytest
import zmq
import zmq.asyncio

from engine.client import EngineDeadError
from engine.ipc.child import EngineChild
from tests.engine.clients import collect, until
from tests.engine.fake_core import COMPUTE, HANG, Script, expected, make_request
from tests.engine.processes import QUICK, children, running

TOO_MANY_FILES = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
NO_TIMES = mock.patch.object(psutil.Process, "cpu_times", side_effect=TOO_MANY_FILES)


async def test_an_engine_is_kept_while_nobody_can_tell_whether_it_computes() -> None:
    async with running(hang_timeout=2.0) as client:
        await client.wait_ready()
        pid, slow, other = client.pid, make_request("slow", COMPUTE), make_request("other")
        with NO_TIMES as asked:
            assert await collect(client, slow) == expected(slow)
        assert asked.called
        assert client.pid == pid
        assert await collect(client, other) == expected(other)


async def test_a_time_that_could_not_be_read_once_does_not_make_an_engine_hang() -> None:
    """The time before it is no measure for the one after it, either."""
    real, number = psutil.Process.cpu_times, 0

    def every_other_time(process: psutil.Process) -> Any:
        nonlocal number
        number += 1
        if number % 2 == 0:
            raise TOO_MANY_FILES
        return real(process)

    async with running(hang_timeout=1.0) as client:
        await client.wait_ready()
        slow = make_request("slow", COMPUTE)
        with mock.patch.object(psutil.Process, "cpu_times", every_other_time):
            assert await collect(client, slow) == expected(slow)
        assert number > 4


async def test_even_so_an_engine_is_not_kept_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.ipc.process.LONGEST_STEP_SECONDS", 2.0)
    async with running(hang_timeout=1.0) as client:
        await client.wait_ready()
        with NO_TIMES, pytest.raises(EngineDeadError):
            await collect(client, make_request("bad", HANG))
        await client.wait_ready()


async def test_an_engine_on_a_gpu_is_not_asked_what_it_computes() -> None:
    async with running(Script(device="cuda"), hang_timeout=1.5) as client:
        await client.wait_ready()
        with NO_TIMES as asked, pytest.raises(EngineDeadError):
            await collect(client, make_request("bad", HANG))
        assert not asked.called
        await client.wait_ready()


async def test_sockets_that_cannot_be_made_once_are_made_at_the_next_start() -> None:
    real, contexts = zmq.Context.socket, []

    def socket(context: zmq.Context[zmq.Socket[bytes]], *args: Any) -> Any:
        contexts.append(context)
        if len(contexts) == 1:
            raise zmq.ZMQError(errno.EMFILE)
        return real(context, *args)

    with mock.patch.object(zmq.Context, "socket", socket):
        async with running() as client:
            await client.wait_ready()
            assert await collect(client, make_request("a")) == expected(make_request("a"))
            assert len(set(contexts)) == 2
            assert contexts[0].closed, "its threads and descriptors go with it"


async def test_descriptors_are_given_back_when_sockets_cannot_be_made() -> None:
    with mock.patch.object(zmq.asyncio, "Socket", side_effect=zmq.ZMQError(errno.EMFILE)):
        before = psutil.Process().num_fds()
        async with running() as client:
            with pytest.raises(EngineDeadError, match="cannot open sockets"):
                await client.wait_ready()
        assert psutil.Process().num_fds() == before


async def test_an_engine_that_has_run_is_started_again_however_often_the_system_refuses() -> None:
    real, refused = EngineChild.start, 0

    async def start(*args: Any) -> EngineChild:
        nonlocal refused
        if refused < 2 * QUICK.max_failed_loads:
            refused += 1
            raise TOO_MANY_FILES
        return await real(*args)

    async with running() as client:
        await client.wait_ready()
        with mock.patch.object(EngineChild, "start", start):
            assert client.pid is not None
            os.kill(client.pid, signal.SIGKILL)
            await until(lambda: client.state == "restarting")
            await client.wait_ready(timeout=10)
        assert refused == 2 * QUICK.max_failed_loads
        assert await collect(client, make_request("a")) == expected(make_request("a"))


FEW_DESCRIPTORS = """
import asyncio, contextlib, os, resource
from engine.config import EngineConfig
from engine.ipc.child import EngineChild

async def start() -> bool:
    try:
        child = await EngineChild.start(["true"], EngineConfig(model=""), "auto")
    except OSError:
        return False
    await child.close()
    return True

async def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    assert await start()
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    started = []
    while taken:
        started.append(await start())
        os.close(taken.pop())
    assert started == sorted(started), started
    assert started[0] is False and started[-1] is True

asyncio.run(main())
"""


def test_an_engine_starts_with_enough_descriptors_or_says_that_it_cannot() -> None:
    """Never in between: libzmq aborts the process if it gets only some of those that it takes."""
    done = subprocess.run(
        [sys.executable, "-c", FEW_DESCRIPTORS], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_an_error_that_nobody_expected_costs_one_engine() -> None:
    async with running() as client:
        await client.wait_ready()
        first = client.pid
        real, wrong = EngineChild.receive, iter([ValueError("nobody expected this")])

        async def receive(child: EngineChild, timeout: float | None) -> Any:
            for error in wrong:
                raise error
            return await real(child, timeout)

        with mock.patch.object(EngineChild, "receive", receive):
            await until(lambda: client.state == "restarting")
            await client.wait_ready()
        assert client.pid not in (None, first)
        assert first not in children()
        assert await collect(client, make_request("a")) == expected(make_request("a"))


async def test_an_error_at_every_start_is_final() -> None:
    with mock.patch.object(EngineChild, "start", side_effect=ValueError("nobody expected this")) as start:
        async with running() as client:
            with pytest.raises(EngineDeadError, match="nobody expected this"):
                await client.wait_ready()
            assert client.state == "failed"
            assert start.call_count == 3
