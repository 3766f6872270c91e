"""The program that decodes pictures: opens one untrusted file after the other, and sends pixels back.

What a file costs to decode cannot be told from its size or its header. So every file gets a limit of
processor time, and the process one of memory; if it exceeds them, only this process ends. It sees one file
after the other and nothing else of any request. ``media_decoder`` starts it and says what to do.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import msgspec

from server.malloc import give_back_memory
from server.media_image import decode_picture, open_picture
from server.media_url import MediaError
from server.media_video import count_frames, decode_frames
from server.media_wire import TOO_COSTLY, Decode, Found, Frame, Look, Refused, Reply, Task, receive, send


def look(task: Look, data: bytes) -> Found:
    image = open_picture(data, task.max_pixels)
    width, height = image.size
    count = count_frames(image, task.max_total_pixels) if task.count_frames else 1
    # A PNG may show another picture to those who cannot animate it, which comes first.
    first = 1 if count > 1 and getattr(image, "default_image", False) else 0
    return Found(width, height, count, first)


def decode(task: Decode, data: bytes) -> Iterator[tuple[Frame, bytes]]:
    image = open_picture(data, sys.maxsize)  # was checked by ``look``
    frames = iter([decode_picture(image)]) if task.indices == (0,) else decode_frames(image, task.indices)
    for frame in frames:
        yield Frame(*frame.size), frame.tobytes()


def perform(task: Task, data: bytes) -> Iterator[Reply | bytes]:
    try:
        if isinstance(task, Look):
            yield look(task, data)
        else:
            for frame, pixels in decode(task, data):
                yield frame
                yield pixels
    except MediaError as error:
        yield Refused(error.code, error.message)
    except MemoryError:
        yield Refused("invalid_image", TOO_COSTLY)


def serve(parent: BufferedIOBase, cpu_seconds: int) -> None:
    task = msgspec.msgpack.decode(receive(parent, sys.maxsize), type=Task)
    allow_seconds(cpu_seconds)
    for reply in perform(task, receive(parent, sys.maxsize)):
        send(parent, reply)


def main(descriptor: int, max_memory: int, cpu_seconds: int) -> None:
    """Serve the process at the other end of a socket until it hangs up. ``max_memory``: bytes of address
    space; ``cpu_seconds``: processor time for each task.
    """
    confine(max_memory)
    give_back_memory()
    with (
        contextlib.suppress(EOFError, ConnectionError, MemoryError),
        socket.socket(fileno=descriptor) as connection,
        connection.makefile("rwb") as parent,  # which writes what is left when it is closed
    ):
        while True:
            serve(parent, cpu_seconds)


def confine(max_memory: int) -> None:
    """Limit memory, let others compute first, and be the first to go if the machine has no memory left."""
    warnings.simplefilter("ignore")  # Pillow's, about files
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of a service: this ends with the server
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def allow_seconds(seconds: int) -> None:
    """End this process once it has taken so much more processor time, by a signal that nothing handles."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
