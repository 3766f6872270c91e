"""The engine process seen from its parent's end of the sockets, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from engine.ipc.wire import from_engine, to_engine
from engine.ipc.worker import WorkerSpec
from engine.messages import EngineInfo, EngineMessage, LoadFailed, RequestOutput, Shutdown, StepReport
from tests.engine.fake_core import BREAK, HANG, HANG_HARD, Script, expected, make_request
from tests.engine.processes import FAKE_WORKER


class Parent:
    """A worker and the other ends of all that it holds."""

    def __init__(self, folder: str, script: Script) -> None:
        self._context = zmq.Context()
        self.inbox = self._context.socket(zmq.PULL)
        self.outbox = self._context.socket(zmq.PUSH)
        spec = WorkerSpec(
            config=script.config,
            requests_address=f"ipc://{folder}/requests",
            reports_address=f"ipc://{folder}/reports",
        )
        self.inbox.bind(spec.reports_address)
        self.outbox.connect(spec.requests_address)
        self.process = subprocess.Popen(FAKE_WORKER, stdin=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(spec) + b"\n")
        self.process.stdin.flush()

    def receive(self) -> EngineMessage:
        return from_engine.decode(self.inbox.recv_multipart())

    def outputs(self, request_id: str) -> Iterator[RequestOutput]:
        while True:
            report = self.receive()
            assert isinstance(report, StepReport)
            for output in report.outputs:
                if output.request_id == request_id:
                    yield output
                    if output.finish_reason is not None:
                        return

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._context.destroy(linger=0)


@pytest.fixture
def parent(request: pytest.FixtureRequest) -> Iterator[Parent]:
    """With a worker that follows the script given as parameter."""
    with tempfile.TemporaryDirectory() as folder:
        parent = Parent(folder, getattr(request, "param", Script()))
        yield parent
        parent.close()


def test_worker_serves_until_told_to_stop(parent: Parent) -> None:
    assert isinstance(parent.receive(), EngineInfo)
    heartbeat = parent.receive()
    assert isinstance(heartbeat, StepReport)
    assert heartbeat.outputs == []
    request = make_request("a")
    parent.outbox.send_multipart(to_engine.encode(request))
    tokens = [token for output in parent.outputs("a") for token in output.token_ids]
    assert tokens == expected(request)
    parent.outbox.send_multipart(to_engine.encode(make_request("b", max_tokens=10**9)))
    parent.outbox.send_multipart(to_engine.encode(Shutdown()))
    assert [output.finish_reason for output in parent.outputs("b")][-1] == "abort"
    assert parent.process.wait() == 0


@pytest.mark.parametrize("frames", [[b""], [b"garbage"], [b"\xc1", b"", b"x"], [b"\x81\xa4type\xa3abc"]])
def test_garbage_is_ignored(parent: Parent, frames: list[bytes]) -> None:
    parent.outbox.send_multipart(frames)
    request = make_request("a")
    parent.outbox.send_multipart(to_engine.encode(request))
    assert isinstance(parent.receive(), EngineInfo)
    assert [token for output in parent.outputs("a") for token in output.token_ids] == expected(request)


def test_requests_that_cannot_be_read_are_answered(parent: Parent) -> None:
    body = msgspec.msgpack.encode({"type": "generate", "request_id": "bad", "prompt": 7})
    parent.outbox.send_multipart([body])
    assert isinstance(parent.receive(), EngineInfo)
    (output,) = parent.outputs("bad")
    assert output.error is not None
    assert output.error.code == "invalid_request"


@pytest.mark.parametrize("parent", [Script(load_error="no such model")], indirect=True)
def test_model_that_cannot_be_served_is_told(parent: Parent) -> None:
    assert parent.receive() == LoadFailed(message="no such model")
    assert parent.process.wait() != 0


def test_broken_core_is_told_and_ends_the_process(parent: Parent) -> None:
    assert isinstance(parent.receive(), EngineInfo)
    parent.outbox.send_multipart(to_engine.encode(make_request("a", BREAK)))
    (output,) = parent.outputs("a")
    assert output.error is not None
    assert output.error.code == "internal_error"
    assert parent.process.wait() != 0


@pytest.mark.parametrize(
    "parent", [Script(), Script(load_seconds=3600)], indirect=True, ids=["idle", "loading"]
)
def test_worker_ends_when_its_life_line_closes(parent: Parent) -> None:
    assert parent.process.stdin is not None
    parent.process.stdin.close()
    assert parent.process.wait() != 0


def test_interrupts_are_left_to_the_parent(parent: Parent) -> None:
    assert isinstance(parent.receive(), EngineInfo)
    parent.process.send_signal(signal.SIGINT)
    assert isinstance(parent.receive(), StepReport)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait() == -signal.SIGTERM


ORPHAN_MAKER = """
import asyncio, sys
from engine.ipc.process import ProcessClient
from tests.engine.fake_core import Script, make_request
from tests.engine.processes import FAKE_WORKER

async def main():
    trick = int(sys.argv[1])
    client = ProcessClient(Script().config, command=FAKE_WORKER)
    await client.start()
    await client.wait_ready()
    print(client.pid, flush=True)
    async for _ in client.generate(make_request("a", trick, max_tokens=10**9)):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize("trick", [7, HANG, HANG_HARD], ids=["running", "hung", "hung with the lock"])
def test_worker_ends_with_a_parent_that_is_killed(trick: int) -> None:
    root = Path(__file__).parent.parent.parent
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", ORPHAN_MAKER, str(trick)],
            stdout=subprocess.PIPE,
            cwd=root,
            env={"TMPDIR": folder},
        ) as parent,
    ):
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)  # for the request to reach it
        assert len(os.listdir(folder)) == 1
        parent.kill()
        parent.wait()
        # Nobody may be there to reap it in a container; it is gone all the same.
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        if trick != HANG_HARD:  # then nobody is left who could
            assert os.listdir(folder) == []
