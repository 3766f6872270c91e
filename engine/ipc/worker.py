"""The engine process: loads a core and runs its loop between two sockets. Started by ``engine.ipc.process``.

It reads one line of JSON from stdin, a ``WorkerSpec``. The pipe then stays open as its life line: when it
closes, the parent is gone, and the worker ends as well. Knows nothing of models; ``__main__`` provides the
loader.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import zmq

from engine.config import EngineConfig, LogFormat
from engine.core_protocol import CoreLoader
from engine.errors import ModelLoadError
from engine.host.logs import configure_logging
from engine.ipc.wire import WireError, from_engine, request_id_in, to_engine
from engine.loop import EngineLoop, Unreadable
from engine.messages import ClientMessage, EngineMessage, LoadFailed

LINGER_MS = 5_000
"""How long final messages may take to be sent. The parent reads continuously, so only without one is this
limit reached.
"""

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

log = logging.getLogger(__name__)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker is to load, and the addresses of its sockets."""

    config: EngineConfig
    requests_address: str
    reports_address: str
    log_level: int = logging.INFO
    log_format: LogFormat = "auto"


class Channel:
    """The worker's end of both sockets.

    Neither has a high-water mark: nothing is dropped, sending never blocks, and the front end limits the
    messages in flight by the number of requests it admits. The receiving side binds.
    """

    def __init__(self, spec: WorkerSpec, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._inbox = context.socket(zmq.PULL)
        self._outbox = context.socket(zmq.PUSH)
        for socket in (self._inbox, self._outbox):
            socket.setsockopt(zmq.LINGER, LINGER_MS)
            socket.set_hwm(0)
        self._inbox.bind(spec.requests_address)
        self._outbox.connect(spec.reports_address)

    def send(self, message: EngineMessage) -> None:
        self._outbox.send_multipart(from_engine.encode(message), copy=False)

    def receive(self, timeout: float) -> Iterator[ClientMessage | Unreadable]:
        """Yield all messages that have arrived; if there are none, wait for up to ``timeout`` seconds."""
        self._inbox.poll(round(timeout * 1000))
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self._inbox.recv_multipart(zmq.DONTWAIT, copy=False)
                try:
                    yield to_engine.decode(frames)
                except WireError as error:
                    log.error("a message could not be read: %s", error)
                    yield Unreadable(request_id_in(frames))

    def close(self) -> None:
        self._inbox.close()
        self._outbox.close()


def main(load: CoreLoader) -> int:
    """Entry point of the engine process. Returns its exit code."""
    # Ctrl-C reaches the whole process group; the parent decides when its engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life_line = _take_stdin()
    spec = msgspec.json.decode(life_line.readline(), type=WorkerSpec)
    _end_with_parent(life_line, spec)
    configure_logging(spec.log_level, spec.log_format)
    with zmq.Context() as context, contextlib.closing(Channel(spec, context)) as channel:
        return run_worker(load, spec.config, channel)


def run_worker(load: CoreLoader, config: EngineConfig, channel: Channel) -> int:
    """Serve until told to stop; return the exit code.

    0: stopped as requested; 1: the model cannot be served, or the engine broke.
    """
    try:
        core = load(config)
    except ModelLoadError as error:
        channel.send(LoadFailed(message=str(error)))
        return 1
    except Exception:
        log.exception("the engine could not be loaded")
        return 1
    channel.send(core.info)
    try:
        EngineLoop(core).run(channel.receive, channel.send)
    except Exception:
        log.exception("the engine broke")
        return 1
    return 0


def _take_stdin() -> IO[bytes]:
    """Take over stdin: libraries that prompt on a terminal read end-of-file, and children inherit nothing."""
    life_line = os.fdopen(os.dup(0), "rb", buffering=0)  # a thread blocked in a buffered read disturbs exit
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return life_line


def _end_with_parent(life_line: IO[bytes], spec: WorkerSpec) -> None:
    def watch() -> None:
        life_line.read()
        _remove_sockets(spec)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    if sys.platform == "linux":
        # The thread above cannot run while native code hangs holding the GIL; nor could a signal handler
        # written in Python. So the kernel sends SIGUSR1 (10) when the parent dies, and its handler is the C
        # function alarm: called with the signal's number, it gives the thread ten seconds before SIGALRM ends
        # the process. (SIGHUP would give it one second, but terminals send that too, and nohup ignores it.)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal(signal.SIGUSR1, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)


def _remove_sockets(spec: WorkerSpec) -> None:
    """Remove the sockets, which the parent would have done had it not been killed."""
    with contextlib.suppress(OSError):
        for address in (spec.requests_address, spec.reports_address):
            path = Path(address.removeprefix("ipc://"))
            path.unlink(missing_ok=True)
        path.parent.rmdir()
