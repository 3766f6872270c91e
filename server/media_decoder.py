"""Decodes untrusted pictures in processes of their own, which are started when needed and replaced when they
end. Blocking; ``media_child`` is the other end.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from queue import LifoQueue
from typing import Final

import msgspec
from PIL import Image

from engine.host.programs import module_command
from server.media_child import TOO_COSTLY, Decode, Found, Frame, Look, Refused, Reply
from server.media_url import MediaError

CPU_SECONDS: Final = 10
"""Maximum processor time to look at a file or to decode it. A JPEG of 40 million pixels takes about one."""
BASE_MEMORY: Final = 512 * 2**20
"""Bytes of address space for the interpreter, Pillow, and a file with its copies."""
BYTES_PER_PIXEL: Final = 40
"""Of the largest picture, while it is decoded, turned upright and laid on white. WebP takes most."""


class Decoders:
    """Any number of threads may call; ``count`` of them at a time, the others wait.

    ``max_pixels``, of one picture, decides how much memory each process may use. ``cpu_seconds``: processor
    time for each call.
    """

    def __init__(self, count: int, max_pixels: int, cpu_seconds: int = CPU_SECONDS) -> None:
        memory = BASE_MEMORY + BYTES_PER_PIXEL * max_pixels
        self._all = [_Decoder(memory, cpu_seconds) for _ in range(count)]
        self._idle: LifoQueue[_Decoder] = LifoQueue()  # last used, first reused: little to do, few processes
        for decoder in self._all:
            self._idle.put(decoder)

    def look(self, data: bytes, task: Look) -> Found:
        """Check a file and say what is in it. Raises ``MediaError``."""
        with self._borrowed() as decoder:
            found = decoder.ask(task, data)
            assert isinstance(found, Found)
            return found

    def decode(self, data: bytes, indices: tuple[int, ...]) -> list[Image.Image]:
        """Return frames of a file that was looked at, upright and in RGB. Raises ``MediaError``."""
        with self._borrowed() as decoder:
            frame = decoder.ask(Decode(indices), data)
            frames = [decoder.pixels_of(frame)]
            frames += [decoder.pixels_of(decoder.reply()) for _ in indices[1:]]
            return frames

    def close(self) -> None:
        """End all processes. Calls in other threads fail."""
        for decoder in self._all:
            decoder.close()

    @contextmanager
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

    def __init__(self, max_memory: int, cpu_seconds: int) -> None:
        self._limits = [str(max_memory), str(cpu_seconds)]
        self._lock = threading.Lock()
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
        self._encode = msgspec.msgpack.Encoder().encode

    def start(self) -> None:
        """Start a process if there is none. Raises ``OSError`` if it cannot be started."""
        with self._lock:
            if self._closed:
                raise OSError("the decoders were closed")
            if self._process is not None and self._process.poll() is None:
                return
            self._end()
            self._connection, theirs = Pipe()
            with theirs:
                arguments = [str(theirs.fileno()), *self._limits]
                self._process = subprocess.Popen(  # noqa: S603 -- our own program
                    module_command("server.media_child") + arguments,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # whose buffers would take memory
                    start_new_session=True,  # Ctrl-C is for the server, which lets requests end
                )

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """End the process if it does not answer as it should: it may be in the middle of something."""
        try:
            yield
        except MediaError:
            raise
        except (EOFError, OSError):  # its limits ended it
            self._kill()
            raise MediaError("invalid_image", TOO_COSTLY) from None
        except BaseException:
            self._kill()
            raise

    def ask(self, task: Look | Decode, data: bytes) -> Found | Frame:
        self._connection.send_bytes(self._encode(task))
        self._connection.send_bytes(data)
        return self.reply()

    def reply(self) -> Found | Frame:
        reply = self._replies.decode(self._connection.recv_bytes())
        if isinstance(reply, Refused):
            raise MediaError(reply.code, reply.message)
        return reply

    def pixels_of(self, frame: Found | Frame) -> Image.Image:
        assert isinstance(frame, Frame)
        return Image.frombytes("RGB", (frame.width, frame.height), self._connection.recv_bytes())

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()  # and a thread that waits for its reply learns of it
                self._process.wait()

    def _kill(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()
