"""What strangers put into pictures: colours come out right, attacks end in a fixed text."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.media import MediaConfig, MediaLoader
from server.media_image import decode_picture, open_picture, read_data_url
from server.media_url import MediaError
from tests.server.media_host import load_one

WHITE, RED, BLUE = (255, 255, 255), (254, 0, 0), (0, 0, 254)
MAX_PIXELS = 1_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes, header: str = "data:image/png;base64,") -> str:
    return header + base64.b64encode(data).decode()


def decode(data: bytes) -> Image.Image:
    image = decode_picture(open_picture(data, MAX_PIXELS))
    assert image.mode == "RGB"
    return image


def refused(data: bytes) -> str:
    with pytest.raises(MediaError) as caught:
        decode_picture(open_picture(data, MAX_PIXELS))
    assert "0x" not in caught.value.message  # no addresses of objects
    return caught.value.code


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header may lie."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*c) for c in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 1)
    return image


@pytest.mark.parametrize(
    ("data", "corner"),
    [
        (encoded(Image.new("RGB", (4, 4), RED)), RED),
        (encoded(Image.new("RGB", (4, 4), RED), "WEBP", lossless=True), RED),
        (encoded(Image.new("RGB", (4, 4), RED), "GIF"), RED),
        (encoded(Image.new("RGB", (16, 16), RED), "JPEG", quality=95), RED),
        (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), RED),
        (encoded(Image.new("L", (4, 4), 254)), (254, 254, 254)),
        (encoded(Image.new("1", (4, 4), 1)), WHITE),
        (encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), WHITE),
        (encoded(Image.new("RGBA", (4, 4), (*RED, 255)), "WEBP", lossless=True), RED),
        (encoded(Image.new("LA", (4, 4), (0, 0))), WHITE),
        (encoded(palette_with_transparency(), transparency=1), WHITE),
        (encoded(palette_with_transparency(), transparency=0), BLUE),
        (encoded(palette_with_transparency(), "GIF", transparency=1), WHITE),
        (encoded(Image.fromarray(np.full((4, 4), 0x8000, np.uint16))), (128, 128, 128)),
    ],
)
def test_colours(data: bytes, corner: tuple[int, int, int]) -> None:
    found = decode(data).getpixel((0, 0))
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, corner, strict=True)) <= 3


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    image = Image.new("RGB", (64, 32), RED)
    image.paste(Image.new("RGB", (32, 32), BLUE), (0, 0))
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (32, 64)
    top = upright.getpixel((16, 8))
    assert isinstance(top, tuple)
    assert top[2] > 200


def test_broken_camera_notes_do_not_spoil_a_picture() -> None:
    data = encoded(Image.new("RGB", (4, 4), RED), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    assert decode(data).size == (4, 4)


def test_only_the_first_frame_of_thousands_is_read() -> None:
    frame = encoded(Image.new("RGB", (8, 8), RED), "GIF")
    animated = encoded(
        Image.new("P", (8, 8), 0), "GIF", save_all=True, append_images=[palette_with_transparency()] * 20
    )
    assert decode(animated).size == (8, 8)
    # A body of frames repeated until it has megabytes: only the first costs anything.
    start = frame.rindex(b",")
    many = frame[:start] + frame[start:-1] * 200_000 + b";"
    begin = time.monotonic()
    decode(many)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 200), (200, 1)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size, RED))).size == size


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1)])
def test_strips_are_refused(size: tuple[int, int]) -> None:
    assert refused(encoded(Image.new("RGB", size, RED))) == "invalid_image"


@pytest.mark.parametrize("side", [1001, 20_000, 100_000])
def test_bombs_are_refused_on_their_header(side: int) -> None:
    assert refused(png(side, side, (b"IDAT", zlib.compress(b"\0" * 100)))) == "image_too_large"
    screen = struct.pack("<HH", min(side, 65535), min(side, 65535))
    gif = bytearray(encoded(Image.new("RGB", (8, 8), RED), "GIF"))
    gif[6:10] = screen
    assert refused(bytes(gif)) == "image_too_large"


@pytest.mark.parametrize("side", [6_400, 2**31 - 1])
def test_a_bomb_is_told_our_own_limit(side: int) -> None:
    with pytest.raises(MediaError, match="more than 40000000 pixels"):
        open_picture(png(side, side, (b"IDAT", zlib.compress(b"\0" * 100))), 40_000_000)


def test_bombs_of_compressed_text_are_refused() -> None:
    text = b"key\0\0" + zlib.compress(b"a" * 200_000_000, 9)
    assert refused(png(4, 4, (b"zTXt", text))) == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_and_corrupted_files(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert refused(data[: len(data) // 2]) == "invalid_image"
    for cut in range(0, 60, 7):
        assert refused(data[:cut]) in ("invalid_image", "unsupported_image_format")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (4, 4)), "BMP"),
        encoded(Image.new("RGB", (4, 4)), "TIFF"),
        encoded(Image.new("RGB", (4, 4)), "ICO"),
        encoded(Image.new("RGB", (4, 4)), "PDF"),
        encoded(Image.new("RGB", (4, 4)), "EPS"),
        b"\0asm\x01\0\0\0",
    ],
)
def test_other_formats_are_refused_whatever_they_are_called(data: bytes) -> None:
    assert refused(data) == "unsupported_image_format"


@given(st.binary(max_size=200), st.integers(0, 60))
def test_damage_anywhere_gives_a_picture_or_a_fixed_text(noise: bytes, at: int) -> None:
    data = bytearray(encoded(Image.new("RGB", (4, 4), RED)))
    data[at : at + len(noise)] = noise
    with suppress(MediaError):  # anything else fails the test
        decode(bytes(data))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png,notbase64",
        "data:text/html;base64,AAAA",
        "data:image/png;base64",
        "data:image/png;base64,!!!!",
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA\nAA",
        "data:image/png;base64,AA%3D%3D",
        "data:image/png;base64,ÄÄÄÄ",
        "data:image/png;base64,\ud800AAA",
        "data:" + ";x=y" * 100 + ";base64,AAAA",
        "data:",
    ],
)
def test_junk_in_data_urls(url: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_data_url(url, 1000)
    assert caught.value.code == "invalid_image_url"


@pytest.mark.parametrize(
    "header", ["data:;base64,", "DATA:image/jpg;charset=x;BASE64,", "data:image/any;base64,"]
)
@pytest.mark.parametrize("length", [997, 998, 999, 1000])
def test_data_urls_up_to_the_limit(header: str, length: int) -> None:
    assert read_data_url(data_url(bytes(length), header), 1000) == bytes(length)


@pytest.mark.parametrize("length", [1001, 1002, 1003, 1004, 10**6])
def test_data_urls_above_the_limit(length: int) -> None:
    with pytest.raises(MediaError) as caught:
        read_data_url(data_url(bytes(length)), 1000)
    assert caught.value.code == "image_too_large"


def test_a_huge_data_url_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(MediaError):
        read_data_url("data:;base64," + "A" * 10_000, 1000)


async def load(url: str, config: MediaConfig) -> Image.Image:
    loader = MediaLoader(config)
    try:
        return await load_one(loader, url)
    finally:
        await loader.aclose()


async def code_of(url: str, config: MediaConfig) -> str:
    with pytest.raises(MediaError) as caught:
        await load(url, config)
    return caught.value.code


async def test_data_urls_load() -> None:
    data = encoded(Image.new("RGB", (4, 4), RED))
    assert (await load(data_url(data), MediaConfig())).getpixel((0, 0)) == RED
    assert await code_of(data_url(data), MediaConfig(max_bytes=20)) == "image_too_large"
    assert await code_of(data_url(data), MediaConfig(max_pixels=15)) == "image_too_large"


@pytest.mark.parametrize(
    "url", ["", "x", "//host/a", "javascript:alert(1)", "ftp://h/a", "blob:x", "/etc/passwd"]
)
async def test_other_schemes_are_refused(url: str) -> None:
    assert await code_of(url, MediaConfig()) == "invalid_image_url"


class TestFiles:
    @pytest.fixture
    def config(self, tmp_path: Path) -> MediaConfig:
        (tmp_path / "open").mkdir()
        for path in ("open/a b.png", "secret.png"):
            (tmp_path / path).write_bytes(encoded(Image.new("RGB", (4, 4), RED)))
        return MediaConfig(allowed_local_path=tmp_path / "open")

    async def test_below_the_folder(self, config: MediaConfig) -> None:
        for host in ("", "localhost"):
            url = f"file://{host}{config.allowed_local_path}/a%20b.png"
            assert (await load(url, config)).size == (4, 4)

    async def test_no_folder_allows_nothing(self, config: MediaConfig) -> None:
        url = f"file://{config.allowed_local_path}/a%20b.png"
        assert await code_of(url, MediaConfig()) == "forbidden_image_file"

    @pytest.mark.parametrize(
        "path",
        [
            "/../secret.png",
            "/%2e%2e/secret.png",
            "/..%2fsecret.png",
            "/link.png",
            "/folder/secret.png",
            "/pipe",
            "",
            "/",
            "/missing.png",
            "/loop",
            "/a%00.png",
            "/%ff%fe",
            "/\ud800",
            "-sibling/secret.png",
        ],
    )
    async def test_nothing_else(self, config: MediaConfig, path: str, tmp_path: Path) -> None:
        folder = tmp_path / "open"
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
        (folder / "folder").symlink_to(tmp_path)
        (folder / "loop").symlink_to(folder / "loop")
        os.mkfifo(folder / "pipe")
        (tmp_path / "open-sibling").mkdir()
        (tmp_path / "open-sibling" / "secret.png").write_bytes((tmp_path / "secret.png").read_bytes())
        assert await code_of(f"file://{folder}{path}", config) == "forbidden_image_file"

    @pytest.mark.parametrize(
        "form", ["file:{}", "file:/{}", "file://host{}", "file://evil/..{}", "FILE://./{}"]
    )
    async def test_other_forms(self, config: MediaConfig, form: str) -> None:
        url = form.format(f"{config.allowed_local_path}/a%20b.png")
        assert await code_of(url, config) == "forbidden_image_file"

    async def test_large_files(self, config: MediaConfig) -> None:
        small = MediaConfig(allowed_local_path=config.allowed_local_path, max_bytes=20)
        assert await code_of(f"file://{config.allowed_local_path}/a%20b.png", small) == "image_too_large"


async def longest_pause(work: Callable[[], Any]) -> float:
    """Seconds for which the event loop did not answer while ``work`` was awaited."""
    pause, running = 0.0, True

    async def watch() -> None:
        nonlocal pause
        while running:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            pause = max(pause, time.monotonic() - before)

    watcher = asyncio.create_task(watch())
    await work()
    running = False
    await watcher
    return pause


async def test_the_event_loop_answers_while_a_big_picture_is_decoded() -> None:
    url = data_url(encoded(Image.new("RGB", (6000, 6000), RED)))  # few bytes, many pixels
    config = MediaConfig()
    begin = time.monotonic()
    pause = await longest_pause(lambda: load(url, config))
    took = time.monotonic() - begin
    assert took > 0.1  # long enough for a blocked loop to show
    assert pause < took / 2
