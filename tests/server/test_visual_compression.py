"""Lossy compression over HTTP: who may ask for it, what the engine is told, and what usage counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import msgspec
import pytest

from engine.config import VisualCompression
from engine.messages import GenerateRequest, RequestOutput
from tests.server.conftest import MODEL, Live, start_live, stop_live
from tests.server.fakes import IMAGE_TOKENS, MAX_MODEL_LEN
from tests.server.test_status import samples

CHAT = "/v1/chat/completions"
IMAGE = {"type": "image_url", "image_url": {"url": "color:red"}}
VALID: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": [IMAGE]}]}
LOSSY = {"visual_compression": {"method": "prune", "ratio": 2.5}}
SPARED = IMAGE_TOKENS - 1


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    live = start_live(target_visual_compression='{"method": "none"}')
    yield live
    stop_live(live)


@pytest.fixture
def allowing(server: Live) -> Live:
    """Its engine spares three tokens of a prompt where it is asked to."""

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        asked = request.visual_compression
        async for output in server.engine.says("Hello")(request):
            yield msgspec.structs.replace(output, num_spared_tokens=SPARED if asked else 0)

    server.engine.reset()
    server.engine.answer = answer
    return server


@pytest.fixture
def http(allowing: Live) -> Iterator[httpx.Client]:
    with allowing.http() as client:
        yield client


def test_usage_counts_what_the_model_saw(allowing: Live, http: httpx.Client) -> None:
    plain = http.post(CHAT, json=VALID).json()["usage"]
    assert allowing.engine.requests[-1].visual_compression is None
    assert "uncompressed_image_tokens" not in plain["prompt_tokens_details"]
    usage = http.post(CHAT, json=VALID | LOSSY | {"n": 2}).json()["usage"]
    assert allowing.engine.requests[-1].visual_compression == VisualCompression(method="prune", ratio=2.5)
    assert usage["prompt_tokens"] == plain["prompt_tokens"] - SPARED
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    seen = usage["prompt_tokens_details"]
    assert (seen["image_tokens"], seen["uncompressed_image_tokens"]) == (IMAGE_TOKENS - SPARED, IMAGE_TOKENS)


def test_metrics_count_what_the_model_saw(allowing: Live, http: httpx.Client) -> None:
    name = "specvlm:request_prompt_tokens_sum"

    def prompt_len(fields: dict[str, Any]) -> float:
        before = samples(http)[name].value
        assert http.post(CHAT, json=VALID | fields).status_code == 200
        return float(samples(http)[name].value - before)

    assert prompt_len({}) - prompt_len(LOSSY) == SPARED


def test_responses_too(allowing: Live, http: httpx.Client) -> None:
    asked = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "color:red"}]}]}
    usage = http.post("/v1/responses", json=asked | LOSSY).json()["usage"]
    assert allowing.engine.requests[-1].visual_compression == VisualCompression(method="prune", ratio=2.5)
    assert usage["input_tokens_details"]["uncompressed_image_tokens"] == IMAGE_TOKENS
    plain = http.post("/v1/responses", json=asked).json()["usage"]
    assert "uncompressed_image_tokens" not in plain["input_tokens_details"]
    assert plain["input_tokens"] - usage["input_tokens"] == SPARED


def test_a_server_that_does_not_allow_it_says_so(live: Live) -> None:
    with live.http() as http:
        response = http.post(CHAT, json=VALID | LOSSY)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "visual_compression")
        assert error["code"] == "unsupported_parameter"
        assert "--target-visual-compression" in error["message"]
        assert not live.engine.requests
        whole = VALID | {"visual_compression": {"method": "none"}}
        assert http.post(CHAT, json=whole).status_code == 200
        assert http.get("/version").json()["visual_compression"] is None


def test_version_tells_what_the_server_does(http: httpx.Client) -> None:
    assert http.get("/version").json()["visual_compression"] == {"method": "none", "ratio": 4.0}


@pytest.mark.parametrize("wrong", [{"method": "zip"}, {"ratio": 2}, {"method": "pool", "ratio": 0.5}, "pool"])
def test_a_way_that_there_is_not_is_refused(http: httpx.Client, wrong: Any) -> None:
    response = http.post(CHAT, json=VALID | {"visual_compression": wrong})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("visual_compression")


def test_only_what_may_be_left_must_fit_the_context(allowing: Live, http: httpx.Client) -> None:
    """How much is left the engine knows alone: it cuts the answer to what fits."""
    text = {"type": "text", "text": "x" * (MAX_MODEL_LEN - 10 * IMAGE_TOKENS)}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": [*[IMAGE] * 12, text]}]}
    assert http.post(CHAT, json=asked).json()["error"]["code"] == "context_length_exceeded"
    assert http.post(CHAT, json=asked | LOSSY).status_code == 200
    least = len("user:") + len(text["text"]) + 12
    assert allowing.engine.requests[-1].sampling.max_tokens == MAX_MODEL_LEN - least
    error = http.post(CHAT, json=asked | LOSSY | {"max_tokens": MAX_MODEL_LEN}).json()["error"]
    assert error["code"] == "context_length_exceeded"
