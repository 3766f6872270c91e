"""Runs ``specvlm serve`` in a subprocess on a free port for the duration of a ``with`` block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

STOP_SECONDS = 20.0
TELL_SECONDS = 5.0
TAIL_BYTES = 4000
_ROOT = Path(__file__).resolve().parent.parent


Tell = Callable[[float, str], object]


class ServerError(Exception):
    """The server exited or did not become ready; the message contains its output."""


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A running server. ``url`` has no path. ``seconds``: from its start to the first 200 from ``/ready``."""

    url: str
    seconds: float


@contextmanager
def own_server(
    flags: Sequence[str], *, limit_seconds: float = 180.0, tell: Tell = lambda *_: None
) -> Iterator[OwnServer]:
    """Start ``specvlm serve`` with ``flags``, without the caller's ``SPECVLM_*`` environment variables.

    ``tell`` is called during startup with the elapsed seconds and the last line of output. Raises
    ``ServerError`` if the server exits or is not ready after ``limit_seconds``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Run our own server, whatever the working directory contains; relative paths in flags are the caller's.
    command = [sys.executable, "-P", "-m", "server", "serve", "--port", str(port), *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPECVLM_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH")]))
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
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(f"{url}/ready", process, output, start, limit_seconds, tell)
            yield OwnServer(url, time.perf_counter() - start)
        finally:
            _stop(process)


def _wait(
    url: str, process: subprocess.Popen[bytes], output: IO[bytes], start: float, limit: float, tell: Tell
) -> None:
    told = 0.0
    while (gone := time.perf_counter() - start) < limit and process.poll() is None:
        if gone - told >= TELL_SECONDS:
            told = gone
            # The progress bar of a download is a single line that is rewritten again and again.
            tell(gone, next((line for line in reversed(_tail(output).splitlines()) if line.strip()), ""))
        try:
            if httpx.get(url, timeout=1.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    ended = process.poll()
    fate = f"was not ready after {limit:.0f} s" if ended is None else f"exited with code {ended}"
    raise ServerError(f"specvlm serve {fate}:\n{_tail(output)}")


def _tail(output: IO[bytes]) -> str:
    """Return the end of the process's output, without moving the file position, which the process shares."""
    size = os.fstat(output.fileno()).st_size
    read = os.pread(output.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES))
    return read.decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
