"""Seconds from starting ``specvlm serve`` to the first 200 of ``/ready``, files already in the page cache."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

import httpx

from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged, summary

LIMIT_SECONDS = 180.0


def measure(settings: Settings) -> dict[str, Any]:
    first = _start_once(settings)
    warm = summary([_start_once(settings) for _ in range(max(3, settings.repeats // 2))])
    return {
        "unit": "seconds",
        "first": first,
        "warm": warm,
        "figures": [judged("start to /ready, seconds", warm["median"], 10.0, at_least=False)],
    }


def _start_once(settings: Settings) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server", "serve", "--model", settings.model, "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPECVLM_")}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/ready", process)
            return time.perf_counter() - start
        except RuntimeError:
            output.seek(0)
            sys.stderr.buffer.write(output.read())
            raise
        finally:
            _stop(process)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(url, timeout=1.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"not ready after {LIMIT_SECONDS} s, or ended with {process.poll()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    run_measurement(measure)
