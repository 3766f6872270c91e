"""Videos are their frames: written one after the other, or taken from an animation. Nothing else is read."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server.media import MediaConfig, MediaLoader, Video
from server.media_url import MediaError
from server.media_video import MAX_FRAMES, sampled
from tests.server.conftest import Live, StartServer
from tests.server.test_media_pictures import data_url, encoded

CHAT = "/v1/chat/completions"
FRAMES = "data:video/jpeg;base64,"


def picture(number: int, size: int = 16) -> Image.Image:
    """Of few colours, so that a GIF's palette holds them all."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 3, (size, size, 3), np.uint8) * 100)


def in_base64(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
    return base64.b64encode(encoded(image, kind, **options)).decode()


def animation(kind: str, frames: Sequence[Image.Image]) -> str:
    first, *rest = frames
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=rest, duration=40, **options)
    return data_url(data, f"data:image/{kind.lower()};base64,")


async def load(*sources: str | Video, **limits: Any) -> list[list[Image.Image]]:
    loader = MediaLoader(MediaConfig(**limits))
    try:
        async with loader.load(sources) as pictures:
            return pictures.images
    finally:
        await loader.aclose()


async def code_of(url: str, **limits: Any) -> str:
    with pytest.raises(MediaError) as caught:
        await load(Video(url), **limits)
    return caught.value.code


def same(found: Sequence[Image.Image], wanted: Sequence[Image.Image]) -> bool:
    return [np.asarray(one).tolist() for one in found] == [np.asarray(one).tolist() for one in wanted]


async def test_frames_come_as_pictures_in_their_order() -> None:
    frames = [in_base64(picture(0)), in_base64(picture(1), "WEBP"), in_base64(picture(2), "JPEG")]
    alone = await load(*(f"data:;base64,{frame}" for frame in frames))
    before, video, after = await load(
        f"data:;base64,{in_base64(picture(3))}", Video(FRAMES + ",".join(frames)), f"data:;base64,{frames[0]}"
    )
    assert same(video, [image for (image,) in alone])
    assert same(before + after, [picture(3), picture(0)])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
async def test_an_animation_is_its_frames(kind: str) -> None:
    frames = [picture(number) for number in range(9)]
    url = animation(kind, frames)
    assert same((await load(Video(url, 16)))[0], frames)
    assert same((await load(Video(url, 3)))[0], [frames[0], frames[4], frames[8]])
    assert same((await load(Video(url, 1)))[0], frames[:1])
    assert same((await load(url))[0], frames[:1]), "as a picture it is its first frame"


def test_frames_are_taken_evenly() -> None:
    for count in range(1, 40):
        for most in range(1, 20):
            found = sampled(count, most)
            assert len(found) == min(count, most)
            assert found[0] == 0
            assert most == 1 or found[-1] == count - 1
            gaps = {b - a for a, b in pairwise(found)}
            assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    "url",
    [
        "data:video/mp4;base64,AAAA",
        "data:video/webm;base64,AAAA",
        "data:video/jpeg,AAAA",
        "data:image/jpeg;base64,AAAA",
        "https://example.com/a.mp4",
        "http://169.254.169.254/a.gif",
        "file:///etc/passwd",
        "video.mp4",
        "data:",
    ],
)
async def test_containers_and_addresses_are_not_read(url: str) -> None:
    assert await code_of(url) == "unsupported_video"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        (FRAMES, "unsupported_image_format"),
        (FRAMES + ",", "unsupported_image_format"),
        (FRAMES + in_base64(picture(0)) + ",", "unsupported_image_format"),
        (FRAMES + "!!!!", "invalid_image_url"),
        (FRAMES + in_base64(picture(0)) + ",AAA", "invalid_image_url"),
        (FRAMES + in_base64(picture(0))[:-40], "invalid_image"),
        ("data:image/gif;base64,", "unsupported_image_format"),
        ("data:image/gif;base64,R0lGODlh", "unsupported_image_format"),
        (animation("GIF", [picture(0)] * 2).replace("data:image/gif", "data:image/bmp"), "unsupported_video"),
    ],
)
async def test_junk_is_refused(url: str, code: str) -> None:
    assert await code_of(url) == code


async def test_damaged_animations_give_frames_or_a_fixed_text() -> None:
    loader = MediaLoader()
    for kind in ("GIF", "WEBP", "PNG"):
        head, _, text = animation(kind, [picture(number) for number in range(6)]).partition(",")
        data = bytearray(base64.b64decode(text))
        for at in range(20, len(data), max(1, len(data) // 25)):
            broken = data[:at] + b"\xff\x00\x13" + data[at + 3 :]
            for one in (broken, data[:at]):
                video = Video(f"{head},{base64.b64encode(one).decode()}")
                with suppress(MediaError):  # anything else fails the test
                    async with loader.load([video]):
                        pass
    await loader.aclose()


async def test_all_frames_together_are_bounded() -> None:
    url = animation("GIF", [picture(number) for number in range(8)])
    assert len((await load(Video(url), max_total_pixels=9 * 256))[0]) == 8
    assert await code_of(url, max_total_pixels=7 * 256) == "image_too_large"
    assert await code_of(url, max_total_pixels=100) == "image_too_large"
    frames = FRAMES + ",".join([in_base64(picture(0))] * 4)
    assert await code_of(frames, max_total_pixels=1000) == "images_too_large"
    assert await code_of(frames, max_request_bytes=1000) == "images_too_large"
    assert await code_of(frames, max_bytes=100) == "image_too_large"


def growing_gif() -> bytes:
    """A screen of 16 x 16 whose third frame reaches far beyond it, which Pillow follows."""
    small, wide = (encoded(Image.new("P", size), "GIF") for size in ((16, 16), (600, 600)))
    start = small.index(struct.pack("<cHHHH", b",", 0, 0, 16, 16))
    beyond = wide[wide.index(struct.pack("<cHHHH", b",", 0, 0, 600, 600)) : -1]
    return small[:-1] + small[start:-1] + beyond + small[start:-1] * 3 + b";"


async def test_a_frame_beyond_the_first_ones_size_is_refused() -> None:
    """All limits are checked with the size of the first frame."""
    url = data_url(growing_gif(), "data:image/gif;base64,")
    assert await code_of(url, max_total_pixels=20_000) == "invalid_image"
    assert await code_of(url) == "invalid_image"


async def test_hundreds_of_thousands_of_frames_cost_little() -> None:
    one = encoded(Image.new("P", (8, 8)), "GIF")
    start = one.rindex(b",")
    many = one[:start] + one[start:-1] * 200_000 + b";"
    began = time.process_time()
    assert await code_of(data_url(many, "data:image/gif;base64,")) == "image_too_large"
    assert time.process_time() - began < 5
    assert MAX_FRAMES < 200_000


def part(*colors: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": FRAMES + ",".join(colors)}}


def shown(color: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"color:{color}"}}


def ask(http: httpx.Client, *content: dict[str, Any]) -> httpx.Response:
    return http.post(CHAT, json={"messages": [{"role": "user", "content": list(content)}], "seed": 0})


def test_a_model_sees_of_a_video_what_it_sees_of_pictures(live: Live, http: httpx.Client) -> None:
    text = {"type": "text", "text": "What happens?"}
    as_video = ask(http, shown("black"), part("red", "blue"), text, part("lime"))
    as_pictures = ask(http, *map(shown, ("black", "red", "blue")), text, shown("lime"))
    assert as_video.status_code == as_pictures.status_code == 200
    one, other = live.engine.requests
    assert one.prompt.token_ids == other.prompt.token_ids
    assert [image.hash for image in one.prompt.images] == [image.hash for image in other.prompt.images]
    assert as_video.json()["usage"] == as_pictures.json()["usage"]


def test_every_frame_counts_as_a_picture(start_server: StartServer) -> None:
    live = start_server(limit_mm_per_prompt={"image": 3})
    with live.http() as http:
        assert ask(http, part("red", "blue"), shown("red")).status_code == 200
        live.media.loaded.clear()
        for content in ([part("red", "blue"), shown("red"), shown("red")], [part(*["red"] * 5000)]):
            error = ask(http, *content).json()["error"]
            assert (error["code"], error["param"]) == ("too_many_images", "messages")
    assert live.media.loaded == []


def test_animations_share_the_room_that_is_left(start_server: StartServer) -> None:
    live = start_server(limit_mm_per_prompt={"image": 8})
    asked: list[Video] = []

    def load(sources: Sequence[str | Video]) -> Any:
        asked.extend(one for one in sources if isinstance(one, Video))
        raise MediaError("invalid_image", "seen enough")

    live.media.load = load  # type: ignore[method-assign]
    gif = {"type": "video_url", "video_url": {"url": "data:image/gif;base64,AAAA"}}
    with live.http() as http:
        ask(http, gif)
        ask(http, gif, gif, shown("red"), part("red", "blue"))
    assert [video.max_frames for video in asked] == [8, 2, 2, 2]


@pytest.mark.parametrize("kind", ["input_audio", "file", "audio_url"])
def test_parts_of_other_kinds_are_refused_by_name(http: httpx.Client, kind: str) -> None:
    error = ask(http, {"type": kind, kind: {}}).json()["error"]
    assert error["param"] == "messages[0].content[0]"
    assert f"'{kind}'" in error["message"]
    assert "'video_url'" in error["message"]


def test_pictures_beside_a_video_have_no_details(live: Live, http: httpx.Client) -> None:
    low = {"type": "image_url", "image_url": {"url": "color:red", "detail": "low"}}
    assert ask(http, low, part("red", "blue")).status_code == 200
    assert live.engine.requests[-1].speculative.details == []
