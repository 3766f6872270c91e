"""Pictures travel once, whatever opens and ends in between."""

from __future__ import annotations

import asyncio
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.client import EngineDeadError
from engine.ipc.child import EngineChild
from engine.ipc.tensors_once import TensorsKept, TensorsSent
from engine.ipc.wire import to_engine
from engine.loop import EngineLoop
from engine.messages import ForgetPictures, GenerateRequest
from processing.prompt import ImageInput, Prompt
from tests.engine.clients import collect
from tests.engine.fake_core import FakeCore, Script, expected, make_request
from tests.engine.processes import ENDLESS, kill, running


def with_pictures(name: str, pictures: list[int]) -> GenerateRequest:
    images = [
        ImageInput(hash=bytes([one]), spans=[(place, 1)], tensors={"pixels": np.full(3, one)})
        for place, one in enumerate(pictures)
    ]
    plain = make_request(name)
    prompt = Prompt(token_ids=[1] * max(1, len(pictures)), images=images)
    return GenerateRequest(request_id=name, prompt=prompt, sampling=plain.sampling)


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=4))))
def test_both_ends_agree(events: list[tuple[int, list[int]]]) -> None:
    """Each event opens a request with these pictures, or ends the one that is open under that number."""
    sent, kept = TensorsSent(), TensorsKept()
    held: dict[str, set[bytes]] = {}
    for number, pictures in events:
        name, before = str(number), set().union(*held.values())
        if name in held:
            del held[name]
            kept.forget(sent.release(name))
        else:
            request = with_pictures(name, pictures)
            held[name] = {image.hash for image in request.prompt.images}
            lean = sent.leave_out(request)
            travels = [image.hash for image in lean.prompt.images if image.tensors]
            assert sorted(travels) == sorted(held[name] - before)
            whole = kept.complete(lean)
            for image, full in zip(request.prompt.images, whole.prompt.images, strict=True):
                assert (image.hash, image.spans) == (full.hash, full.spans)
                assert (image.tensors["pixels"] == full.tensors["pixels"]).all()
        assert kept._tensors.keys() == set().union(*held.values())
    for name in held:
        kept.forget(sent.release(name))
    assert not kept._tensors
    assert not sent._holders


async def test_choices_share_what_travels() -> None:
    """One picture of 128 choices, each with a copy of its own, filled gigabytes."""
    pixels = np.random.default_rng(0).standard_normal((3, 300, 300), dtype=np.float32)
    sizes = []

    def send(child: EngineChild, message: object) -> None:
        sizes.append(sum(memoryview(frame).nbytes for frame in to_engine.encode(message)))  # type: ignore[arg-type]
        original(child, message)  # type: ignore[arg-type]

    original = EngineChild.send
    async with running(Script()) as client:
        await client.wait_ready()
        with mock.patch.object(EngineChild, "send", send):
            for _ in range(2):
                requests = [make_request(f"r{i}", pixels=pixels, max_tokens=5) for i in range(40)]
                answers = await asyncio.gather(*(collect(client, request) for request in requests))
                assert answers == [expected(request) for request in requests]
                assert sum(size > pixels.nbytes for size in sizes) == 1
                assert sum(sizes) < 1.1 * pixels.nbytes
                sizes.clear()


def test_a_picture_that_never_came_ends_its_request_alone() -> None:
    core = FakeCore()
    loop = EngineLoop(core)
    lean = with_pictures("a", [7])
    sent = TensorsSent()
    sent.leave_out(lean)
    orphan = sent.leave_out(with_pictures("b", [7]))
    assert loop._take([orphan, make_request("c", max_tokens=1), ForgetPictures(hashes=[bytes([7])])])
    ended = {one.request_id: one.finish_reason for one in loop.step().outputs}
    assert ended == {"b": "error", "c": "length"}


async def test_an_engine_that_is_started_again_gets_them_again() -> None:
    pixels = np.ones((3, 4, 5), np.float32)
    async with running() as client:
        await client.wait_ready()
        stream = client.generate(make_request("open", pixels=pixels, max_tokens=ENDLESS))
        await anext(stream)
        kill(client)
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        await client.wait_ready()
        request = make_request("next", pixels=pixels)
        assert await collect(client, request) == expected(request)
