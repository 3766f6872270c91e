"""The lifetime of one engine process with its sockets and folder, from start to reaping.

It never restarts anything and knows nothing of requests: a new process gets a new object, so nothing stale
can reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil
import zmq
import zmq.asyncio

from engine.config import EngineConfig, LogFormat
from engine.ipc.wire import from_engine, to_engine
from engine.ipc.worker import WorkerSpec
from engine.messages import ClientMessage, EngineMessage

LAST_WORDS_SECONDS = 0.2
"""How long to wait for messages that are still in flight after the process has ended."""

TERMINATE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL."""

RECONNECT_MS = 20
"""The longest delay of a first request that is due to connecting before the worker has bound its socket."""

STDERR = 2

NUM_DESCRIPTORS = 24
"""How many file descriptors must be free to start an engine; its sockets and pipes take fewer."""


def engine_environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the engine: ``own``, with a short spin time for GNU OpenMP threads.

    After parallel work they then spin for microseconds instead of milliseconds. Torch's threads and those of
    the CPU kernels take turns on the same cores; a first token took 1.6 times as long while they spun against
    each other. Existing settings of the wait policy are respected.
    """
    if own.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        return dict(own)
    return {**own, "GOMP_SPINCOUNT": "1000"}


class EngineChild:
    """A running engine process. Created by ``start``; the owner must call ``close``."""

    _outbox: zmq.Socket[bytes]
    _inbox: zmq.asyncio.Socket
    _process: asyncio.subprocess.Process
    _exited: asyncio.Task[int]
    _incoming: asyncio.Future[list[zmq.Frame]]

    def __init__(self) -> None:
        self._resources = contextlib.ExitStack()

    @classmethod
    async def start(cls, command: Sequence[str], config: EngineConfig, log_format: LogFormat) -> EngineChild:
        """Start the process. Raises ``OSError`` if it cannot be started."""
        child = cls()
        try:
            await child._start(command, config, log_format)
        except BaseException as error:
            child._resources.close()
            if isinstance(error, zmq.ZMQError):
                raise OSError(error.errno, f"cannot open sockets for the engine: {error}") from error
            raise
        return child

    async def _start(self, command: Sequence[str], config: EngineConfig, log_format: LogFormat) -> None:
        _check_descriptors()
        self._open_sockets()
        folder = _private_folder()
        self._resources.callback(shutil.rmtree, folder, ignore_errors=True)
        spec = WorkerSpec(
            config=config,
            requests_address=f"ipc://{folder / 'requests'}",
            reports_address=f"ipc://{folder / 'reports'}",
            log_level=logging.getLogger().getEffectiveLevel(),
            log_format=log_format,
        )
        # The receiving side binds. A connecting sender has its queue from the start, so (without a high-water
        # mark) sending neither blocks nor fails, and needs no asyncio.
        self._inbox.bind(spec.reports_address)
        self._outbox.connect(spec.requests_address)
        self._incoming = self._receive_frames()

        stdin, life_line = os.pipe()
        self._resources.callback(os.close, life_line)  # kept open until then: the worker ends when it closes
        try:
            os.write(life_line, msgspec.json.encode(spec) + b"\n")
            # Stdout belongs to the caller of this process (for a benchmark's JSON, for example).
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=stdin, stdout=STDERR, env=engine_environment(os.environ)
            )
        finally:
            os.close(stdin)
        self._exited = asyncio.create_task(self._process.wait())

    def _open_sockets(self) -> None:
        context = zmq.Context()
        self._resources.callback(context.term)  # last: it waits for sockets that are open
        self._outbox = context.socket(zmq.PUSH)
        self._resources.callback(self._outbox.close)
        self._inbox = zmq.asyncio.Socket(context, zmq.PULL)
        self._resources.callback(self._inbox.close)
        for socket in (self._outbox, self._inbox):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(0)
        self._outbox.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def cpu_seconds(self) -> float | None:
        """Processor time that the process has taken, all threads together; ``None`` if nobody can tell.

        That is so if it has ended, or if this process has no file descriptor left to read it with.
        """
        try:
            times = psutil.Process(self.pid).cpu_times()
        except (psutil.Error, OSError):
            return None
        return float(times.user + times.system)

    def send(self, message: ClientMessage) -> None:
        """Send a message; it is lost if the process is dead. Raises ``WireError`` if it cannot be encoded."""
        self._outbox.send_multipart(to_engine.encode(message), copy=False)

    async def receive(self, timeout: float | None) -> EngineMessage | None:
        """Return the next message; ``None`` once the process has ended and all its messages were read.

        Raises ``TimeoutError`` after ``timeout`` seconds of silence, ``WireError`` for an invalid message.
        """
        either: set[asyncio.Future[Any]] = {self._incoming, self._exited}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._exited.done():
            await asyncio.wait({self._incoming}, timeout=LAST_WORDS_SECONDS)
        if self._incoming.done():
            frames = self._incoming.result()
            self._incoming = self._receive_frames()
            return from_engine.decode(frames)
        if self._exited.done():
            return None
        raise TimeoutError

    async def close(self) -> None:
        """End the process if it is still running, reap it, and free all resources."""
        # Not ``_exited``: the teardown of an event loop cancels it while the process still runs.
        ended = asyncio.create_task(self._process.wait())
        try:
            if self.returncode is None:
                self._process.terminate()
                await asyncio.wait({ended}, timeout=TERMINATE_SECONDS)
        finally:  # also when cancelled
            if self.returncode is None:
                self._process.kill()
            self._resources.close()
            await asyncio.wait({ended, self._exited})

    def _receive_frames(self) -> asyncio.Future[list[zmq.Frame]]:
        return asyncio.ensure_future(self._inbox.recv_multipart(copy=False))


def _check_descriptors() -> None:
    """Raise ``OSError`` if few file descriptors are left: libzmq aborts this process if it gets only some."""
    with contextlib.ExitStack() as opened:
        for _ in range(NUM_DESCRIPTORS):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def _private_folder() -> Path:
    """Create a folder that only this user can enter: the sockets in it have no other protection."""
    folder = Path(tempfile.mkdtemp(prefix="specvlm-"))
    found = folder.lstat()
    if stat.S_IMODE(found.st_mode) != stat.S_IRWXU or found.st_uid != os.getuid():
        folder.rmdir()
        raise PermissionError(f"{folder} is not private; engine sockets require a private folder")
    return folder
