"""Small files that would take gigabytes or hours to decode, for reasons that their headers do not tell."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from tests.server.test_media_pictures import encoded

PLAIN = encoded(Image.new("RGB", (8, 8), "red"), "JPEG")
PIXELS = zlib.compress((b"\0" + bytes(32)) * 8)  # of 8 x 8 in a PNG


def with_parts(parts: bytes) -> bytes:
    """``PLAIN`` with these behind its first segment."""
    end = 4 + int.from_bytes(PLAIN[4:6])
    return PLAIN[:end] + parts + PLAIN[end:]


def progressive(scans: int, side: int = 256) -> bytes:
    """A JPEG whose last scan is sent again and again: a few bytes that are decoded over the whole picture."""
    data = encoded(Image.new("L", (side, side), 100), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def frame_headers(count: int) -> bytes:
    """A JPEG with frame headers of 64 KB, which Pillow takes apart into tuples."""
    body = struct.pack(">BHHB", 8, 8, 8, 3) + b"\x01\x11\x00" * 21_842
    return with_parts((b"\xff\xde" + struct.pack(">H", len(body) + 2) + body) * count)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(kind: bytes, body: bytes, count: int) -> bytes:
    """A PNG with so many of these chunks behind its header."""
    data = encoded(Image.new("RGB", (8, 8)))
    return data[:33] + chunk(kind, body) * count + data[33:]


def growing_png(side: int) -> bytes:
    """An animation whose second header enlarges its frames; the second one is then cleared."""

    def header(side: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))

    def frame(number: int, side: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, side, side, 0, 0, 1, 1, 1, 0))

    later = [chunk(b"fdAT", struct.pack(">I", number) + PIXELS) for number in (2, 4)]
    parts = [chunk(b"acTL", struct.pack(">II", 4, 0)), frame(0, 8), chunk(b"IDAT", PIXELS), header(side)]
    parts += [frame(1, side), later[0], frame(3, 8), later[1], chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + header(8) + b"".join(parts)


def gif_frame(side: int, disposal: int) -> bytes:
    control = b"\x21\xf9\x04" + bytes([disposal << 2]) + bytes(4)
    return control + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00"


def cleared_gif(*sides: int) -> bytes:
    """A GIF of 1 x 1 whose frames have these sides; Pillow clears the area of the last one first."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x81, 0, 0) + bytes(12)
    *before, last = sides
    return head + b"".join(gif_frame(side, 1) for side in before) + gif_frame(last, 2) + b";"


def with_blocks(parts: bytes) -> bytes:
    """A GIF with these between its header and its frame."""
    data = encoded(Image.new("RGB", (8, 8), "red"), "GIF")
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, 8, 8))
    return data[:at] + parts + data[at:]


def hidden_blocks(count: int) -> bytes:
    """Short blocks of a comment, behind what looks like the end of the file."""
    return with_blocks(b"\x21\x01\x00\x3b" + b"x" * 59 + b"\x00\x21\xfe" + b"\x02hi" * count + b"\x00")
