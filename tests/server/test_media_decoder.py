"""Decoding in processes: what a file may cost there, and that nobody else pays for it."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from PIL import Image

from engine.host.programs import module_command
from server.media import Video
from server.media_decoder import Decoders
from server.media_url import MediaError, MediaUnavailable
from server.media_wire import Decode, Look, receive, send
from tests.server import bombs
from tests.server.test_media_pictures import data_url, decode, encoded, refused
from tests.server.test_videos import load

ENDLESS = bombs.progressive(20_000, 1000)
GOOD = encoded(Image.new("RGB", (8, 6), "red"))
PICTURE = Look(count_frames=False, max_pixels=40_000_000, max_total_pixels=100_000_000)
ANIMATION = Look(count_frames=True, max_pixels=40_000_000, max_total_pixels=100_000_000)
MIB = 2**20


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """One process, so that each call follows another in it, with a second for each."""
    decoders = Decoders(1, max_pixels=1_000_000, cpu_seconds=1)
    yield decoders
    decoders.close()


def works(decoders: Decoders) -> bool:
    found = decoders.look(GOOD, PICTURE)
    (image,) = decoders.decode(GOOD, (0,))
    return (found.width, found.height) == (8, 6) == image.size and image.getpixel((0, 0)) == (255, 0, 0)


def decoded(decoders: Decoders, data: bytes, task: Look) -> list[Image.Image]:
    found = decoders.look(data, task)
    return decoders.decode(data, tuple(range(found.num_frames)))


def busy_child() -> psutil.Process:
    """Wait until a process decodes, and return it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in children():
            if child.cpu_times().user > 0.5:  # it takes less to start
                return child
        time.sleep(0.01)
    raise TimeoutError


def children() -> list[psutil.Process]:
    every = psutil.Process().children()
    return [one for one in every if "server.media_child" in " ".join(one.cmdline())]


@pytest.mark.parametrize(
    ("bomb", "task"),
    [
        (ENDLESS, PICTURE),
        (bombs.frame_headers(400), PICTURE),
        (bombs.with_parts(b"\xff\xe1\x00\x0aExif\x00\x00MM" * 2_000_000), PICTURE),
        (bombs.growing_png(60_000), ANIMATION),
        (bombs.cleared_gif(1, 13_000), ANIMATION),
        (bombs.with_blocks(b"\x21\xfe" + b"\x01h" * 10_000_000 + b"\x00"), PICTURE),
        (bombs.hidden_blocks(10_000_000), PICTURE),
    ],
    ids=[
        "scans",
        "frame headers",
        "Exif",
        "growing PNG",
        "growing GIF",
        "comment",
        "hidden blocks",
    ],
)
def test_a_file_of_great_cost_is_refused_and_the_next_one_read(
    decoders: Decoders, bomb: bytes, task: Look
) -> None:
    assert works(decoders)
    with pytest.raises(MediaError, match="too much time or memory"):
        decoded(decoders, bomb, task)
    assert works(decoders)
    assert len(children()) == 1


def test_others_are_decoded_meanwhile() -> None:
    decoders = Decoders(2, max_pixels=1_000_000, cpu_seconds=2)
    ended = threading.Event()

    def attack() -> None:
        with pytest.raises(MediaError, match="too much time"):
            decoders.decode(ENDLESS, (0,))
        ended.set()

    with ThreadPoolExecutor() as pool:
        attacked = pool.submit(attack)
        assert [works(decoders) for _ in range(5)] == [True] * 5
        assert not ended.is_set()
        attacked.result()
    decoders.close()


def test_a_process_that_was_killed_is_replaced(decoders: Decoders) -> None:
    assert works(decoders)
    (first,) = children()
    first.send_signal(signal.SIGKILL)
    psutil.wait_procs([first], timeout=10)
    assert works(decoders)
    assert [one.pid for one in children()] != [first.pid]


@pytest.mark.parametrize(
    ("reason", "told"), [(signal.SIGKILL, MediaUnavailable), (signal.SIGTERM, MediaError)]
)
def test_whoever_ends_a_process_the_file_is_not_blamed(reason: int, told: type[Exception]) -> None:
    """A service manager sends SIGTERM to all processes, while requests still end: it goes on for its time."""
    decoders = Decoders(1, max_pixels=1_000_000, cpu_seconds=2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(decoders.decode, ENDLESS, (0,))
        busy_child().send_signal(reason)
        assert isinstance(waiting.exception(timeout=60), told)
    assert works(decoders)
    decoders.close()


def test_a_process_that_cannot_start_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    monkeypatch.setattr("server.media_decoder.module_command", lambda _: command)
    decoders = Decoders(1, max_pixels=1_000_000)
    with pytest.raises(MediaUnavailable):
        decoders.look(GOOD, PICTURE)
    decoders.close()


def test_processes_do_not_get_the_servers_keys(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SPECVLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LANGFUSE_SECRET_KEY"):
        monkeypatch.setenv(name, "secret")
    assert works(decoders)
    (child,) = children()
    assert "secret" not in child.environ().values()


def test_a_process_serves_on_after_a_broken_frame(decoders: Decoders) -> None:
    frames = [Image.effect_noise((64, 64), 50) for _ in range(6)]
    whole = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert len(decoders.decode(whole, (0, 1, 2, 3, 4, 5))) == 6
    before = children()
    with pytest.raises(MediaError, match="damaged"):
        decoders.decode(whole[: len(whole) // 2], (0, 1, 2, 3, 4, 5))
    assert works(decoders)
    assert children() == before


def test_a_process_whose_server_goes_away_ends_quietly() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [*module_command("server.media_child"), str(theirs.fileno()), str(2**31), "5"],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        with ours.makefile("rwb") as peer:
            send(peer, Decode((0,)))
            send(peer, encoded(Image.new("RGB", (3000, 3000))))
            receive(peer, 1000)  # the frame's size, which its pixels follow
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, b"")


def test_closing_ends_processes_and_those_who_wait_for_them(caplog: pytest.LogCaptureFixture) -> None:
    decoders = Decoders(1, max_pixels=1_000_000)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(decoders.decode, ENDLESS, (0,))
        busy_child()
        decoders.close()
        assert isinstance(waiting.exception(timeout=10), MediaUnavailable)
    assert children() == []
    with pytest.raises(MediaUnavailable, match="closed"):
        decoders.look(GOOD, PICTURE)
    assert not caplog.records, "a shutdown is no error"


def test_processes_keep_no_memory_of_large_pictures() -> None:
    decoders = Decoders(1, max_pixels=20_000_000)
    large = encoded(Image.new("RGB", (4000, 4000), "red"))
    assert works(decoders)
    (child,) = children()
    before = child.memory_info().rss
    assert decoders.decode(large, (0,))[0].size == (4000, 4000)
    assert works(decoders)
    assert child.memory_info().rss < before + 32 * MIB
    decoders.close()


def test_the_largest_pictures_have_room() -> None:
    """Transparent and turned, which takes most copies; a WebP needs most for itself."""
    decoders = Decoders(1, max_pixels=10_000_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (4000, 2500), (255, 0, 0, 0))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "method": 0})):
        (found,) = decoders.decode(encoded(image, kind, exif=exif, **options), (0,))
        assert (found.size, found.getpixel((9, 9))) == ((2500, 4000), (255, 255, 255))
    decoders.close()


@pytest.mark.parametrize(
    "data",
    [
        bombs.PLAIN + os.urandom(20_000_000),  # a motion photo ends in its video
        encoded(Image.effect_noise((512, 512), 40), "JPEG", restart_marker_blocks=1),
        bombs.with_parts((b"\xff\xe1\xff\xff" + b"\xff\xda" * 32766 + b"x") * 40),  # extended XMP
        encoded(Image.new("CMYK", (64, 64)), "JPEG", progressive=True, icc_profile=os.urandom(1_000_000)),
        bombs.progressive(20),
        bombs.with_chunks(b"prVt", b"", 500),
        bombs.with_blocks(b"\x21\xfe" + (b"\xff" + b"x" * 255) * 1000 + b"\x00"),
    ],
    ids=["motion photo", "restarts", "XMP", "ICC", "scans", "chunks", "blocks"],
)
def test_photos_with_much_in_them_are_pictures(data: bytes) -> None:
    assert min(decode(data).size) >= 8


def several(count: int) -> bytes:
    """An MPO of so many pictures."""
    first, *more = [Image.effect_noise((64, 64), 10 + number) for number in range(count)]
    return encoded(first, "MPO", save_all=True, append_images=more)


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


def test_cut_short_files_are_damaged() -> None:
    for data in (bombs.PLAIN, bombs.progressive(0)):
        for end in (3, 4, 20, 21, len(data) // 2):
            assert refused(data[:end]) in ("invalid_image", "unsupported_image_format")
    assert refused(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR") == "invalid_image"
