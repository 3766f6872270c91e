"""A video is answered as its frames are: against a real server, in its own processes."""

from __future__ import annotations

from typing import Any

import httpx

from tests.http.conftest import LiveServer
from tests.http.test_live_openai import data_url


def ask(server: LiveServer, *parts: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "text", "text": "What happens?"}
    body = {"messages": [{"role": "user", "content": [*parts, text]}], "temperature": 0, "max_tokens": 12}
    response = httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_frames_are_answered_as_pictures_are(live_server: LiveServer) -> None:
    urls = [data_url(seed) for seed in range(3)]
    video = "data:video/jpeg;base64," + ",".join(url.partition(",")[2] for url in urls)
    pictures = ask(live_server, *({"type": "image_url", "image_url": {"url": url}} for url in urls))
    frames = ask(live_server, {"type": "video_url", "video_url": {"url": video}})
    assert frames["choices"][0]["message"] == pictures["choices"][0]["message"]
    images = [one["usage"]["prompt_tokens_details"]["image_tokens"] for one in (frames, pictures)]
    assert images[0] == images[1] > 0
    one = ask(live_server, {"type": "image_url", "image_url": {"url": urls[0]}})
    assert one["usage"]["prompt_tokens_details"]["image_tokens"] * 3 == images[0]
