"""Bounds the parts that a picture's file is made of, before any of them is read.

Pillow reads the parts before the pixels one by one in Python and keeps some of them, and decoders read all
scans of a JPEG. A file of a megabyte can hold hundreds of thousands of parts. Files that are cut short or
broken pass here: their decoder says what is wrong.
"""

from __future__ import annotations

import re
from typing import Final

from server.media_url import MediaError

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"

MAX_PARTS: Final = 1000
"""Segments of a JPEG; chunks of a PNG besides those of pixels. Photos have at most some dozens."""
MAX_SCANS: Final = 64
"""Scans of a JPEG, each of which is decoded over the whole picture. Progressive pictures have about ten."""
MAX_EXIF: Final = 64
"""Exif segments, which Pillow appends to one another."""
MAX_JUNK: Final = 65_536
"""Bytes between the segments of a JPEG, which Pillow skips one by one."""
MAX_PIXEL_CHUNKS: Final = 50_000
"""Chunks of a PNG that hold pixels. Encoders write some thousand bytes into each."""

_SCAN, _END, _EXIF_SEGMENT = 0xDA, 0xD9, 0xE1
# In the coded data of a scan: a marker that is neither a stuffed byte, nor a restart, nor a fill byte.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FILL: Final = re.compile(rb"\xff*")
_ALONE: Final = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length
_PIXEL_CHUNKS: Final = frozenset({b"IDAT", b"fdAT", b"fcTL"})


def check_parts(data: bytes) -> None:
    """Raise ``MediaError`` for a JPEG or PNG of more parts than pictures have."""
    if data.startswith(_JPEG):
        _check_jpeg(data)
    elif data.startswith(_PNG):
        _check_png(data)


def _check_jpeg(data: bytes) -> None:
    at, segments, scans, exif, junk = 2, 0, 0, 0, 0
    while True:
        marker = data.find(b"\xff", at)
        code = len(data) if marker < 0 else _FILL.match(data, marker).end()  # type: ignore[union-attr]
        if not scans:
            junk += max(0, code - at - 1)
        if segments > MAX_PARTS or scans > MAX_SCANS or exif > MAX_EXIF or junk > MAX_JUNK:
            raise MediaError("invalid_image", "The JPEG has too many segments or scans; save it again.")
        if code + 2 >= len(data) or data[code] == _END:  # what follows the end is not read
            return
        kind = data[code]
        if kind in _ALONE:
            junk, at = junk + 2, code + 1
            continue
        segments += 1
        scans += kind == _SCAN
        exif += kind == _EXIF_SEGMENT and data.startswith(b"Exif\0\0", code + 3)
        at = code + 1 + int.from_bytes(data[code + 1 : code + 3])
        if kind == _SCAN:
            following = _NEXT_MARKER.search(data, at)
            at = following.start() if following else len(data)


def _check_png(data: bytes) -> None:
    at, pixels, others = len(_PNG), 0, 0
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            return
        if kind in _PIXEL_CHUNKS:
            pixels += 1
        else:
            others += 1
        if others > MAX_PARTS or pixels > MAX_PIXEL_CHUNKS:
            raise MediaError("invalid_image", "The PNG has too many chunks; save it again.")
        at += 12 + int.from_bytes(data[at : at + 4])
