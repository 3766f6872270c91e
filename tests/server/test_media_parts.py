"""Files of more parts than pictures have, and pictures that have many parts for good reasons."""

from __future__ import annotations

import io
import os
import struct
import zlib

import pytest
from PIL import Image

from server.media import Video
from server.media_image import open_picture
from server.media_url import MediaError
from tests.server.test_media_pictures import MAX_PIXELS, data_url, decode, encoded, refused
from tests.server.test_videos import load

PLAIN = encoded(Image.new("RGB", (8, 8), "red"), "JPEG")


def with_parts(parts: bytes) -> bytes:
    """``PLAIN`` with these behind its first segment."""
    end = 4 + int.from_bytes(PLAIN[4:6])
    return PLAIN[:end] + parts + PLAIN[end:]


def with_chunks(kind: bytes, body: bytes, count: int) -> bytes:
    """A PNG with so many of these chunks behind its header."""
    data = encoded(Image.new("RGB", (8, 8)))
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + chunk * count + data[33:]


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan is sent again and again: each is decoded over the whole picture."""
    data = encoded(Image.effect_noise((256, 256), 40), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xc4")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def several(count: int, **options: object) -> bytes:
    """An MPO of so many pictures."""
    first, *more = [Image.effect_noise((64, 64), 10 + number) for number in range(count)]
    return encoded(first, "MPO", save_all=True, append_images=more, **options)


def check_refused(data: bytes) -> None:
    """For its parts, and not because Pillow could not read it."""
    with pytest.raises(MediaError, match="too many"):
        open_picture(data, MAX_PIXELS)


@pytest.mark.parametrize(
    "part",
    [
        b"\xff\xe1\x00\x0aExif\x00\x00MM",  # joined one by one
        b"\xff\xe5\x00\x02",  # kept, 30 times as large
        b"\xff\xfe\x00\x02",
        b"\xff" * 100,  # read byte by byte
        b"\x00" * 100,
        b"\xff\xed\x00\x10Photoshop 3.0\x00",
    ],
    ids=["Exif", "APP5", "comment", "fill", "junk", "APP13"],
)
def test_a_jpeg_of_thousands_of_segments_is_refused(part: bytes) -> None:
    assert decode(with_parts(part)).size == (8, 8)
    check_refused(with_parts(part * 2000))
    check_refused(PLAIN[:20] + part * 2000)  # and nothing behind them


@pytest.mark.parametrize("part", [b"\xff\xd9" * 100, b"\xff\xf0\x08\x02" + b"\xff\xe5\x00\x02" * 512])
def test_what_pillow_reads_past_is_counted(part: bytes) -> None:
    """An end before there was a scan, and segments inside one whose length Pillow does not know."""
    check_refused(with_parts(part * 2000))


def test_a_jpeg_of_hundreds_of_scans_is_refused() -> None:
    assert decode(progressive(0)).size == decode(progressive(20)).size == (256, 256)
    check_refused(progressive(200))


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + os.urandom(20_000_000),  # a motion photo ends in its video
        several(12, progressive=True),
        encoded(Image.effect_noise((512, 512), 40), "JPEG", restart_marker_blocks=1),
        with_parts((b"\xff\xe1\xff\xff" + b"\xff\xda" * 32766 + b"x") * 40),  # extended XMP
        encoded(Image.new("CMYK", (64, 64)), "JPEG", progressive=True, icc_profile=os.urandom(1_000_000)),
    ],
    ids=["motion photo", "MPO", "restarts", "XMP", "ICC"],
)
def test_photos_with_much_in_them_are_pictures(data: bytes) -> None:
    assert min(decode(data).size) >= 8


def test_a_png_of_thousands_of_chunks_is_refused() -> None:
    profile = b"x\0\0" + zlib.compress(bytes(1_000_000))
    assert decode(with_chunks(b"prVt", b"", 500)).size == (8, 8)
    check_refused(with_chunks(b"prVt", b"", 2000))
    check_refused(with_chunks(b"iCCP", profile, 5))
    check_refused(with_chunks(b"IDAT", b"", 60_000))


def gif(parts: bytes) -> bytes:
    data = encoded(Image.new("RGB", (8, 8), "red"), "GIF")
    at = data.index(b"," + struct.pack("<HHHH", 0, 0, 8, 8))
    return data[:at] + parts + data[at:]


def test_a_gif_of_millions_of_blocks_is_refused() -> None:
    assert decode(gif(b"!\xfe" + b"\x02hi" * 1000 + b"\x00")).size == (8, 8)
    assert decode(gif(b"!\xfe" + (b"\xff" + b"x" * 255) * 100_000 + b"\x00")).size == (8, 8)
    check_refused(gif(b"!\xfe" + b"\x01h" * 1_000_000 + b"\x00"))
    check_refused(gif(b"\x00" * 1_000_000))
    check_refused(gif(b"\x00" * 1_000_000))


def test_a_jpegs_frame_is_described_once() -> None:
    """By 64 KB of numbers each, which Pillow takes apart in Python."""
    many = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x08\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    check_refused(with_parts(many * 5))


async def test_an_mpo_is_no_video() -> None:
    """Each of its pictures may be the same megabytes, whose segments are read again for each."""
    frames = await load(Video(data_url(several(5), "data:image/gif;base64,")))
    assert [len(one) for one in frames] == [1]


async def test_what_a_png_shows_instead_of_its_animation_is_no_frame() -> None:
    colors = [Image.new("RGB", (8, 8), color) for color in ("white", "red", "blue", "green")]
    buffer = io.BytesIO()
    colors[0].save(buffer, "PNG", save_all=True, append_images=colors[1:], default_image=True)
    [frames] = await load(Video(data_url(buffer.getvalue(), "data:image/apng;base64,")))
    assert [frame.getpixel((0, 0)) for frame in frames] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]


def test_cut_short_files_end_as_before() -> None:
    for data in (PLAIN, progressive(0)):
        for end in (3, 4, 20, 21, len(data) // 2):
            assert refused(data[:end]) in ("invalid_image", "unsupported_image_format")
    assert refused(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR") == "invalid_image"
