"""Decodes untrusted pictures in processes of their own, which are started when needed and replaced when they
end. Blocking; ``media_child`` is the other end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from queue import LifoQueue
from typing import Final

import msgspec
from PIL import Image

from engine.host.programs import module_command
from server.media_url import MediaError, MediaUnavailable
from server.media_wire import TOO_COSTLY, Decode, Found, Frame, Look, Refused, Reply, Task, receive, send

log = logging.getLogger(__name__)

CPU_SECONDS: Final = 5
"""Maximum processor time to look at a file or to decode it. A JPEG of 40 million pixels takes about one, a
WebP without loss two."""
KEPT_VARIABLES: Final = ("PATH", "LANG", "LANGUAGE")
KEPT_FAMILIES: Final = ("LD_", "DYLD_", "PYTHON", "LC_")
"""The environment variables that the interpreter may need: names, and what names begin with."""
MAX_REPLY: Final = 10_000
"""Bytes of a reply without pixels."""
LAST_SECONDS: Final = 1.0
"""How long a process that closed its connection may take to end."""
ENDED_BY_FILE: Final = (
    0,
    *(-reason for reason in (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)),
)
"""Codes of a process that a file ended: without memory for it, out of time, or by a decoder's bug."""
BASE_MEMORY: Final = 512 * 2**20
"""Bytes of address space for the interpreter, Pillow, and a file with its copies."""
BYTES_PER_PIXEL: Final = 40
"""Of the largest picture, while it is decoded, turned upright and laid on white. WebP takes most."""


def environment() -> dict[str, str]:
    """Return what the processes need of this one's environment, which may hold keys. Numpy gets one
    thread, as each takes memory.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in KEPT_VARIABLES or name.startswith(KEPT_FAMILIES)
    }
    return {**kept, "OPENBLAS_NUM_THREADS": "1"}


class Decoders:
    """Any number of threads may call; ``count`` of them at a time, the others wait.

    ``max_pixels``, of one picture, decides how much memory each process may use. ``cpu_seconds``: processor
    time for each call.
    """

    def __init__(self, count: int, max_pixels: int, cpu_seconds: int = CPU_SECONDS) -> None:
        memory = BASE_MEMORY + BYTES_PER_PIXEL * max_pixels
        self._all = [_Decoder(memory, cpu_seconds, 3 * max_pixels) for _ in range(count)]
        self._idle: LifoQueue[_Decoder] = LifoQueue()  # last used, first reused: little to do, few processes
        for decoder in self._all:
            self._idle.put(decoder)

    def look(self, data: bytes, task: Look) -> Found:
        """Check a file and say what is in it. Raises ``MediaError`` and ``MediaUnavailable``."""
        with self._borrowed() as decoder:
            found = decoder.ask(task, data)
            assert isinstance(found, Found)
            return found

    def decode(self, data: bytes, indices: tuple[int, ...]) -> list[Image.Image]:
        """Return frames of a file that was looked at, upright and in RGB. Raises like ``look``."""
        with self._borrowed() as decoder:
            frame = decoder.ask(Decode(indices), data)
            frames = [decoder.pixels_of(frame)]
            frames += [decoder.pixels_of(decoder.reply()) for _ in indices[1:]]
            return frames

    def close(self) -> None:
        """End all processes. Calls in other threads fail."""
        for decoder in self._all:
            decoder.close()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[_Decoder]:
        decoder = self._idle.get()
        try:
            decoder.start()
            with decoder.conversation():
                yield decoder
        finally:
            self._idle.put(decoder)


class _Decoder:
    """One process at a time. Except for ``close``, used by one thread at a time."""

    def __init__(self, max_memory: int, cpu_seconds: int, max_len: int) -> None:
        self._limits = [str(max_memory), str(cpu_seconds)]
        self._max_len = max_len
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start a process if there is none. Raises ``MediaUnavailable`` if it cannot be started."""
        with self._lock:
            if self._closed:
                raise MediaUnavailable("the decoders were closed")
            if self._process is not None and self._process.poll() is None:
                return
            self._end()
            try:
                self._process = self._started()
            except OSError as error:  # too many files are open, say
                log.error("no process that decodes pictures could be started: %s", error)
                raise MediaUnavailable from error

    def _started(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._peer = ours.makefile("rwb")  # keeps the connection open
            return subprocess.Popen(  # noqa: S603 -- our own program
                [*module_command("server.media_child"), str(theirs.fileno()), *self._limits],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment(),
                process_group=0,  # Ctrl-C is for the server, which lets requests end
            )

    @contextlib.contextmanager
    def conversation(self) -> Iterator[None]:
        """End the process if it does not answer as it should: it may be in the middle of something."""
        try:
            yield
        except MediaError:
            raise
        except (EOFError, OSError):
            code = self._kill()
            if code not in ENDED_BY_FILE:  # by the system or an administrator, say
                if not self._closed:
                    log.error("a process that decodes pictures ended with code %s", code)
                raise MediaUnavailable from None
            raise MediaError("invalid_image", TOO_COSTLY) from None
        except BaseException:
            self._kill()
            raise

    def ask(self, task: Task, data: bytes) -> Found | Frame:
        send(self._peer, task)
        send(self._peer, data)
        return self.reply()

    def reply(self) -> Found | Frame:
        reply: Reply = msgspec.msgpack.decode(receive(self._peer, MAX_REPLY), type=Reply)
        if isinstance(reply, Refused):
            raise MediaError(reply.code, reply.message)
        return reply

    def pixels_of(self, frame: Found | Frame) -> Image.Image:
        assert isinstance(frame, Frame)
        return Image.frombytes("RGB", (frame.width, frame.height), receive(self._peer, self._max_len))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()  # and a thread that waits for its reply learns of it
                self._process.wait()

    def _kill(self) -> int | None:
        with self._lock:
            return self._end()

    def _end(self) -> int | None:
        """Return the code with which the process ended, or ended just before."""
        if self._process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_SECONDS)
        self._process.kill()
        code = self._process.wait()
        self._process = None
        with contextlib.suppress(OSError):  # of what it did not read
            self._peer.close()
        return code
