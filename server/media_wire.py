"""What the server and the processes that decode pictures say to each other, and how it gets there.

Pixels and files are sent as they are, everything else as msgpack of fixed types: neither side can make the
other build anything but these.
"""

from __future__ import annotations

import struct
from io import BufferedIOBase
from typing import Final

import msgspec


class Look(msgspec.Struct, frozen=True, tag=True):
    """Check the file that follows, and say what is in it. ``count_frames`` decodes them; otherwise there is
    one.
    """

    count_frames: bool
    max_pixels: int
    max_total_pixels: int


class Decode(msgspec.Struct, frozen=True, tag=True):
    """Decode these frames of the file that follows."""

    indices: tuple[int, ...]


class Found(msgspec.Struct, frozen=True, tag=True):
    """``width`` and ``height`` are those of each frame. ``first``: the index of the first frame to show."""

    width: int
    height: int
    num_frames: int
    first: int


class Frame(msgspec.Struct, frozen=True, tag=True):
    """An upright frame, whose pixels follow: RGB, row by row, 3 bytes each."""

    width: int
    height: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The file is none that can be decoded: what ``MediaError`` has."""

    code: str
    message: str


Task = Look | Decode
Reply = Found | Frame | Refused

TOO_COSTLY: Final = "The image takes too much time or memory to decode; save it again, or send a smaller one."

_LENGTH: Final = struct.Struct("!Q")


def send(peer: BufferedIOBase, message: Task | Reply | bytes) -> None:
    """Send a message to the file of a socket."""
    payload = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    peer.write(_LENGTH.pack(len(payload)))
    peer.write(payload)
    peer.flush()


def receive(peer: BufferedIOBase, max_len: int) -> bytes:
    """Return the next message. Raises ``EOFError`` if the other side is gone, ``ValueError`` if it sends more
    than ``max_len`` bytes.
    """
    (length,) = _LENGTH.unpack(_read(peer, _LENGTH.size))
    if length > max_len:
        raise ValueError(f"a message of {length} bytes where at most {max_len} are expected")
    return _read(peer, length)


def _read(peer: BufferedIOBase, length: int) -> bytes:
    data = peer.read(length)
    if len(data) < length:
        raise EOFError
    return data
