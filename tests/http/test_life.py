"""A server that is told to stop leaves nothing behind; one that serves opens no address inside."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import psutil

from tests.conftest import BuildCheckpoint
from tests.http.conftest import LiveServer, serve

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


def test_private_addresses_are_refused_without_saying_what_is_there(live_server: LiveServer) -> None:
    body = {"messages": [{"role": "user", "content": [PRIVATE_PICTURE]}], "max_tokens": 4}
    answer = httpx.post(f"{live_server.base_url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "forbidden_image_host"
