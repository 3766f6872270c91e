"""Bounds the parts that a picture's file is made of, before any of them is read.

Pillow reads the parts before the pixels one by one in Python and keeps some of them, and decoders read all
scans of a JPEG. A file of a megabyte can hold hundreds of thousands of parts. Files that are cut short or
broken pass here: their decoder says what is wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from server.media_url import MediaError

_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_GIF: Final = b"GIF8"
_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B

MAX_PARTS: Final = 1000
"""Segments of a JPEG; chunks of a PNG besides those of pixels. Photos have at most some dozens."""
MAX_JUNK: Final = 65_536
"""Bytes between the segments of a JPEG or the blocks of a GIF, which Pillow skips one by one."""
MAX_PIXEL_CHUNKS: Final = 50_000
"""Chunks of a PNG that hold pixels. Encoders write some thousand bytes into each."""
MAX_PROFILES: Final = 4
"""Colour profiles of a PNG, each of which is inflated. There is one."""
MAX_GIF_BLOCKS: Final = 300_000
"""Blocks of a GIF: more than 64 MiB of full ones."""

_SCAN, _END = 0xDA, 0xD9
_FRAMES: Final = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
MAX_OF_KIND: Final = {
    _SCAN: 64,  # each is decoded over the whole picture; progressive pictures have about ten
    0xE1: 600,  # an XMP of 32 MiB
    0xED: 64,  # Photoshop's notes, which are taken apart
    0xDB: 64,  # quantisation tables
    **dict.fromkeys(_FRAMES, 4),  # the frame's header, of which there is one
}
"""Segments of a JPEG that are dear to read, by marker."""
MAX_EXIF: Final = 64
"""Exif segments, which Pillow appends to one another."""
# In the coded data of a scan: a marker that is neither a stuffed byte, nor a restart, nor a fill byte.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FILL: Final = re.compile(rb"\xff*")
# Markers without a length, as Pillow reads them: the end is none before there was a scan.
_ALONE: Final = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
_PROFILE: Final = b"iCCP"
_PIXEL_CHUNKS: Final = frozenset({b"IDAT", b"fdAT", b"fcTL"})


def check_parts(data: bytes) -> None:
    """Raise ``MediaError`` for a JPEG, PNG or GIF of more parts than pictures have."""
    if data.startswith(_JPEG):
        _check_jpeg(data)
    elif data.startswith(_PNG):
        _check_png(data)
    elif data.startswith(_GIF):
        _check_gif(data)


def _check_jpeg(data: bytes) -> None:
    at, junk, exif = 2, 0, 0
    kinds: Counter[int] = Counter()
    while True:
        marker = data.find(b"\xff", at)
        code = len(data) if marker < 0 else _FILL.match(data, marker).end()  # type: ignore[union-attr]
        if not kinds[_SCAN]:
            junk += max(0, code - at - 1)
        dear = any(kinds[kind] > most for kind, most in MAX_OF_KIND.items())
        if dear or kinds.total() > MAX_PARTS or exif > MAX_EXIF or junk > MAX_JUNK:
            raise MediaError("invalid_image", "The JPEG has too many segments or scans; save it again.")
        if code + 2 >= len(data) or (data[code] == _END and kinds[_SCAN]):  # what follows is not read
            return
        kind = data[code]
        if kind in _ALONE:
            junk, at = junk + 2, code + 1
            continue
        kinds[kind] += 1
        exif += data.startswith(b"Exif\0\0", code + 3)
        at = code + 1 + int.from_bytes(data[code + 1 : code + 3])
        if kind == _SCAN:
            following = _NEXT_MARKER.search(data, at)
            at = following.start() if following else len(data)


def _check_png(data: bytes) -> None:
    at, pixels, others, profiles = len(_PNG), 0, 0, 0
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        if kind == b"IEND":
            return
        if kind in _PIXEL_CHUNKS:
            pixels += 1
        else:
            others += 1
            profiles += kind == _PROFILE
        if others > MAX_PARTS or pixels > MAX_PIXEL_CHUNKS or profiles > MAX_PROFILES:
            raise MediaError("invalid_image", "The PNG has too many chunks; save it again.")
        at += 12 + int.from_bytes(data[at : at + 4])


def _check_gif(data: bytes) -> None:
    at, blocks, junk = 13 + _colours(data, 10), 0, 0
    while at < len(data) and data[at] != _TRAILER:
        if data[at] == _EXTENSION:
            at += 2
        elif data[at] == _IMAGE:
            at += 11 + _colours(data, at + 9)
        else:
            at, junk = at + 1, junk + 1
            if junk > MAX_JUNK:
                raise _too_many_blocks()
            continue
        while at < len(data) and data[at]:
            at, blocks = at + 1 + data[at], blocks + 1
            if blocks > MAX_GIF_BLOCKS:
                raise _too_many_blocks()
        at += 1


def _colours(data: bytes, at: int) -> int:
    """Return the size in bytes of the colour table that the flags at ``at`` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _too_many_blocks() -> MediaError:
    return MediaError("invalid_image", "The GIF has too many blocks; save it again.")
