"""How much memory pictures may take: those of one request, and those of all requests at a time."""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from server.errors import ApiError
from server.media import MediaConfig, MediaError, MediaLoader, Pictures
from server.media_budget import PixelBudget
from server.media_wire import Found, Look
from server.prompts import PromptBuilder
from server.schemas.chat import ChatRequest
from tests.server.fakes import ByteProcessor


def picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@asynccontextmanager
async def loader(**config: Any) -> AsyncIterator[MediaLoader]:
    loader = MediaLoader(MediaConfig(**config))
    yield loader
    await loader.aclose()


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class Visit:
    """A request in a task of its own, which keeps its pictures until told to leave."""

    def __init__(self, media: MediaLoader, *urls: str) -> None:
        self.pictures: Pictures | None = None
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._run(media, urls))

    async def _run(self, media: MediaLoader, urls: tuple[str, ...]) -> None:
        async with media.load(urls) as self.pictures:
            await self._leave.wait()

    @property
    def has_pictures(self) -> bool:
        return self.pictures is not None

    async def leave(self) -> None:
        self._leave.set()
        await self.task


NUM_BYTES = len(base64.b64decode(picture(4, 4).partition(",")[2]))


@pytest.mark.parametrize("limit", [{"max_total_pixels": 31}, {"max_request_bytes": 2 * NUM_BYTES - 1}])
async def test_pictures_that_are_small_one_by_one_can_be_too_large_together(
    limit: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loader(**limit) as media:
        decoded: list[bytes] = []
        decode = media._decoders.decode

        def watched(data: bytes, indices: tuple[int, ...]) -> list[Image.Image]:
            decoded.append(data)
            return decode(data, indices)

        monkeypatch.setattr(media._decoders, "decode", watched)
        with pytest.raises(MediaError, match=f"{next(iter(limit.values()))}.*in total") as caught:
            async with media.load([picture(4, 4)] * 2):
                pass
        assert (caught.value.code, decoded) == ("images_too_large", [])
        async with media.load([picture(4, 4)]) as pictures:
            assert len(pictures.images) == len(decoded) == 1


async def test_all_that_is_allowed_together_is_loaded_in_order() -> None:
    async with loader(max_total_pixels=60) as media, media.load([picture(4, 4), picture(11, 4)]) as pictures:
        assert [image.size for (image,) in pictures.images] == [(4, 4), (11, 4)]


async def test_pictures_of_another_request_wait_for_memory_in_turn() -> None:
    async with loader(max_total_pixels=40) as media:
        first = Visit(media, picture(5, 4))
        await soon(lambda: first.has_pictures)
        large = Visit(media, picture(5, 4), picture(2, 2))  # 24 pixels, and 20 are left
        await soon(media._pixels._turn.locked)
        small = Visit(media, picture(1, 1))
        text_only = Visit(media)
        await soon(lambda: text_only.has_pictures)
        await asyncio.sleep(0.05)
        assert not large.has_pictures
        assert not small.has_pictures  # or small ones could starve a large one
        await first.leave()
        await soon(lambda: large.has_pictures and small.has_pictures)
        for visit in (large, small, text_only):
            await visit.leave()
        assert media._pixels.num_free == 40


async def test_a_request_that_gives_up_waiting_lets_the_next_one_pass() -> None:
    async with loader(max_total_pixels=40) as media:
        first = Visit(media, picture(5, 4))
        await soon(lambda: first.has_pictures)
        large = Visit(media, picture(5, 5))
        await soon(media._pixels._turn.locked)
        small = Visit(media, picture(1, 1))
        await asyncio.sleep(0.05)
        large.task.cancel()
        await soon(lambda: small.has_pictures)
        await first.leave()
        await small.leave()
        assert media._pixels.num_free == 40


async def test_pictures_count_for_as_long_as_a_thread_works_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    working, go_on = threading.Event(), threading.Event()

    def slow(data: bytes, indices: tuple[int, ...]) -> list[Image.Image]:
        working.set()
        go_on.wait(10)
        return []

    async with loader(max_total_pixels=16) as media:
        monkeypatch.setattr(media._decoders, "decode", slow)
        gone = Visit(media, picture(4, 4))
        await soon(working.is_set)
        gone.task.cancel()
        await asyncio.wait({gone.task})
        await asyncio.sleep(0.02)
        assert media._pixels.num_free == 0
        go_on.set()
        await soon(lambda: media._pixels.num_free == 16)


async def test_one_request_leaves_a_decoder_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    working, go_on = threading.Semaphore(0), threading.Event()
    async with loader(decoders=3) as media:
        look = media._decoders.look

        def slow(data: bytes, task: Look) -> Found:
            if len(data) > NUM_BYTES + 10:
                working.release()
                go_on.wait(30)
            return look(data, task)

        monkeypatch.setattr(media._decoders, "look", slow)
        large = Visit(media, *[picture(64, 64)] * 8)
        await asyncio.to_thread(working.acquire)
        await asyncio.to_thread(working.acquire)
        try:
            async with asyncio.timeout(10), media.load([picture(4, 4)]) as pictures:
                assert len(pictures.images) == 1
        finally:
            go_on.set()
        await soon(lambda: large.has_pictures)
        await large.leave()


async def test_a_decoder_that_cannot_start_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    content = [{"type": "image_url", "image_url": {"url": picture(4, 4)}}]
    messages = ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]}).messages
    async with loader() as media:
        prompts = PromptBuilder(ByteProcessor(), media, 16)  # type: ignore[arg-type]
        with monkeypatch.context() as patched:
            patched.setattr("subprocess.Popen", mock.Mock(side_effect=OSError(errno.EMFILE, "full")))
            with pytest.raises(ApiError) as caught:
                await prompts.build(messages)
        assert (caught.value.status, caught.value.answer.error.code) == (503, "images_unavailable")
        assert len((await prompts.build(messages)).images) == 1


async def test_what_fails_to_decode_is_given_back() -> None:
    url = picture(4, 4)
    cut = "data:image/png;base64," + base64.b64encode(base64.b64decode(url[22:])[:45]).decode()
    async with loader(max_total_pixels=32) as media:
        with pytest.raises(MediaError, match="damaged"):
            async with media.load([url, cut]):
                pass
        await soon(lambda: media._pixels.num_free == 32)


async def test_prompts_hold_their_pictures_only_until_they_are_processed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = ByteProcessor()
    apply, free = processor.apply, list[int]()
    content = [{"type": "image_url", "image_url": {"url": picture(4, 4)}}] * 2
    messages = ChatRequest.model_validate({"messages": [{"role": "user", "content": content}]}).messages
    async with AsyncExitStack() as stack:
        media = await stack.enter_async_context(loader(max_total_pixels=32))

        def watched(conversation: Any, **options: Any) -> Any:
            free.append(media._pixels.num_free)
            return apply(conversation, **options)

        monkeypatch.setattr(processor, "apply", watched)
        prompts = PromptBuilder(processor, media, 16)  # type: ignore[arg-type]
        built = await asyncio.gather(*(prompts.build(messages) for _ in range(6)))
        assert [len(prompt.images) for prompt in built] == [2] * 6
        assert free == [0] * 6  # one at a time
        await soon(lambda: media._pixels.num_free == 32)
        with pytest.raises(ApiError, match="in total"):
            await prompts.build(messages * 2)
        await prompts.aclose()


async def test_shares_of_a_budget_never_exceed_it() -> None:
    budget, held = PixelBudget(10), 0

    async def visit(num_pixels: int) -> None:
        nonlocal held
        share = await budget.take(num_pixels)
        held += num_pixels
        assert held <= 10
        await asyncio.sleep(0.001)
        held -= num_pixels
        share.close()

    async with asyncio.timeout(10):
        await asyncio.gather(*(visit(1 + i % 10) for i in range(100)))
    assert budget.num_free == 10
