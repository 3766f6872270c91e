"""Requests whose pictures load when the server is told to end."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from server.admission import Admission
from server.errors import ApiError
from tests.server.background import Background
from tests.server.conftest import MODEL, StartServer, wait_until

CHAT = "/v1/chat/completions"
PICTURE = {"type": "image_url", "image_url": {"url": "color:red"}}
WITH_PICTURE = {"model": MODEL, "messages": [{"role": "user", "content": [PICTURE]}]}


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_who_waits_for_pictures_is_told_of_the_shutdown(start_server: StartServer, path: str) -> None:
    """It got a 500 in plain text, or none."""
    live = start_server(shutdown_timeout=1)
    live.media.delay = 60
    asked = Background(lambda: httpx.post(live.url + path, json=WITH_PICTURE, timeout=30))
    wait_until(lambda: live.server._app.state.server.admission.num_open == 1)
    live.server.should_exit = True
    response = asked.wait()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


def test_a_request_whose_pictures_load_may_end_within_the_time_of_a_shutdown(
    start_server: StartServer,
) -> None:
    live = start_server(shutdown_timeout=30)
    live.media.delay = 2
    asked = Background(lambda: httpx.post(live.url + "/tokenize", json=WITH_PICTURE, timeout=30))
    wait_until(lambda: live.server._app.state.server.admission.num_open == 1)
    live.server.should_exit = True
    assert asked.wait().status_code == 200


async def test_a_request_at_its_time_limit_does_not_keep_others_from_being_given_up() -> None:
    """Its limit can no longer be moved, while what it did is undone."""
    admission = Admission(None, None, max_open=1, max_waiting_tokens=1, max_picture_bytes=1)  # type: ignore[arg-type]
    undoing = asyncio.Event()

    async def late() -> None:
        async with admission.preparing(asyncio.get_running_loop().time() + 0.01):
            try:
                await asyncio.sleep(60)
            finally:
                undoing.set()
                await asyncio.sleep(0.05)

    async def slow() -> None:
        async with admission.preparing(None):
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(late()), *(asyncio.create_task(slow()) for _ in range(5))]
    await undoing.wait()
    admission.abandon()
    async with asyncio.timeout(10):
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, ApiError) for error in errors)
