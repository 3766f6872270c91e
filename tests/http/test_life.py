"""A server that is told to stop leaves nothing behind; one that serves opens no address inside."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import BuildCheckpoint
from tests.http.conftest import LiveServer, serve, wait_ready

PRIVATE_PICTURE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}}


def test_sigterm_ends_every_process(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    with serve(tiny("llama"), tmp_path, "--shutdown-timeout", "5") as server:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60).status_code == 200
        root = psutil.Process(server.process.pid)
        engines = root.children(recursive=True)
        assert engines, "the engine runs in a process of its own"
        server.process.send_signal(signal.SIGTERM)
        # uvicorn drains, then ends by the signal that it was sent.
        assert server.process.wait(timeout=20) in (0, -signal.SIGTERM)
        _, alive = psutil.wait_procs(engines, timeout=5)
        assert not alive


def test_an_engine_starts_again_though_nobody_reads_the_log(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    """A bar that was drawn while weights were loaded failed then, and counted as a model that cannot be."""
    reader, writer = os.pipe()
    with serve(tiny("llama"), tmp_path, stderr=writer, HF_HUB_DISABLE_PROGRESS_BARS="0") as server:
        os.close(writer)
        os.close(reader)
        [engine] = psutil.Process(server.process.pid).children()
        engine.kill()
        psutil.wait_procs([engine], timeout=10)
        time.sleep(1)
        wait_ready(server)
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
        assert httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60).status_code == 200


@pytest.mark.parametrize("ready", [False, True], ids=["loading", "ready"])
def test_ctrl_c_ends_without_a_traceback(ready: bool, tiny: BuildCheckpoint, tmp_path: Path) -> None:
    with serve(tiny("llama"), tmp_path, ready=ready) as server:
        root = psutil.Process(server.process.pid)
        while not (engines := root.children(recursive=True)):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=4) == -signal.SIGINT
        _, alive = psutil.wait_procs(engines, timeout=5)
        assert not alive
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(("log_format", "starts"), [("console", "2"), ("json", "{")])
def test_both_processes_log_in_the_format_that_was_asked_for(
    log_format: str, starts: str, tiny: BuildCheckpoint, tmp_path: Path
) -> None:
    """Into a file, as a collector of logs would have it."""
    with serve(tiny("llama"), tmp_path, "--log-format", log_format) as server:
        pass
    lines = [line for line in server.log.read_text().splitlines() if "engine." in line or "server." in line]
    assert {name for name in ("engine.", "server.") if name in "".join(lines)} == {"engine.", "server."}
    assert [line for line in lines if not line.startswith(starts)] == []


def test_private_addresses_are_refused_without_saying_what_is_there(live_server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": [PRIVATE_PICTURE]}], "max_tokens": 4}
    answer = httpx.post(f"{live_server.base_url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "forbidden_image_host"
