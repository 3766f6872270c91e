"""A real server in its own processes, on a free port, with a tiny checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import BuildCheckpoint
from tests.imports import ROOT

READY_SECONDS = 240.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class LiveServer:
    """``url`` has no path; ``base_url`` is what OpenAI clients want."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(
    model: Path,
    folder: Path,
    *flags: str,
    ready: bool = True,
    stderr: int | None = None,
    **environment: str,
) -> Iterator[LiveServer]:
    """Run ``python -m server serve`` until the block ends; its output is in ``folder``, its errors go
    to ``stderr`` if that is a descriptor. Waits for the model, unless ``ready`` is false.
    """
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--model", str(model), "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), *flags]
    log = folder / f"server-{port}.log"
    # A developer's own settings must not reach the server under test.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SPECVLM_")}
    with log.open("wb") as output:
        # A session of its own, so that a server that does not stop can be ended with its engine.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output if stderr is None else stderr,
            start_new_session=True,
        )
    server = LiveServer(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            wait_ready(server)
        yield server
    finally:
        if process.poll() is None:
            stop(process)


def wait_ready(server: LiveServer) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/ready", timeout=2.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pytest.fail(f"the server did not end within {STOP_SECONDS} s of SIGTERM")


@pytest.fixture(scope="session")
def live_server(tiny: BuildCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server with a tiny LLaVA, shared by the session: leave it as you found it."""
    with serve(tiny("llava"), tmp_path_factory.mktemp("live")) as server:
        yield server
