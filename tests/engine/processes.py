"""Engine processes for tests, and the proof that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import psutil

from engine.host.programs import module_command
from engine.ipc.process import ProcessClient, RestartPolicy
from tests.engine.fake_core import Script

FAKE_WORKER = module_command("tests.engine.fake_worker")
QUICK = RestartPolicy(first_delay=0.01, max_delay=0.1, max_failed_loads=3)
SLOW_STEPS = Script(step_seconds=0.002)
ENDLESS = 10**9


def make_client(script: Script = SLOW_STEPS, **options: object) -> ProcessClient:
    settings: dict[str, Any] = {"command": FAKE_WORKER, "restart": QUICK, **options}
    return ProcessClient(script.config, **settings)


@asynccontextmanager
async def running(script: Script = SLOW_STEPS, **options: object) -> AsyncIterator[ProcessClient]:
    """A started client with a temporary folder of its own (pytest's have names too long for a socket).

    Afterwards no process, no task and no file of it may be left.
    """
    before = children()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(tempfile, "tempdir", folder):
        client = make_client(script, **options)
        await client.start()
        try:
            yield client
        finally:
            await client.shutdown()
            await client.shutdown()
        assert os.listdir(folder) == []
    assert client.state == "stopped"
    assert client.pid is None
    assert children() == before
    assert asyncio.all_tasks() <= {asyncio.current_task()}


def children() -> set[int]:
    """Zombies included."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def kill(client: ProcessClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
