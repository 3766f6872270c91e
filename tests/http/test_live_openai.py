"""The official Python client against a live server: pictures, streams, many at once, and a killed engine."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from processing.processor import Processor
from tests.conftest import BuildCheckpoint
from tests.golden.reference import EPSILON, load_golden
from tests.http.conftest import LiveServer, serve
from tests.models import TOKENS_PER_IMAGE, picture

MODEL_FLAGS = ("--served-model-name", "tiny")


def data_url(seed: int) -> str:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def question(text: str, *seeds: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(s)}} for s in seeds]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def client_of(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=120)


def model_of(server: LiveServer) -> str:
    return client_of(server).models.list().data[0].id


def metric(server: LiveServer, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples if s.name == name]
    assert samples, f"no metric {name}"
    return sum(s.value for s in samples)


def wait_idle(server: LiveServer) -> None:
    deadline = time.monotonic() + 30
    while metric(server, "specvlm:num_requests_running") or metric(server, "specvlm:num_requests_waiting"):
        assert time.monotonic() < deadline, "requests stay open"
        time.sleep(0.1)


@pytest.mark.parametrize("seeds", [(), (1,), (2, 3)])
def test_answers_are_what_transformers_generates(
    live_server: LiveServer, tiny: BuildCheckpoint, seeds: tuple[int, ...]
) -> None:
    golden = load_golden(tiny("llava"))
    prompt = golden.prompt("What is this?", seeds)
    expected = golden.expected(prompt, 16)
    if min(expected.margins) < EPSILON:
        pytest.fail("choose another prompt: transformers itself is undecided here")
    stop = golden.model.generation_config.eos_token_id
    ids = [t for t in expected.token_ids if t != stop]
    text = Processor.from_pretrained(str(golden.folder)).decode(ids)
    messages = question("What is this?", *seeds) if seeds else [{"role": "user", "content": "What is this?"}]
    client, model = client_of(live_server), model_of(live_server)
    settings: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(prompt.token_ids) >= len(seeds) * TOKENS_PER_IMAGE
    chunks = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == text
    assert len([p for p in pieces if p]) > 1, "nothing was streamed"
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}


def test_a_repeated_picture_comes_from_the_cache(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    for round_ in range(2):
        answer = client.chat.completions.create(
            model=model, messages=question("Again?", 77), temperature=0, max_tokens=4
        )
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        assert details is not None
        assert (details.cached_tokens or 0) > TOKENS_PER_IMAGE * round_ - (1 - round_)


async def ask_many(server: LiveServer, model: str, count: int) -> list[str]:
    """``count`` picture requests at once, every other one streamed; none may fail."""
    async with openai.AsyncOpenAI(
        base_url=server.base_url, api_key="x", max_retries=0, timeout=300
    ) as client:

        async def ask(i: int) -> str:
            settings: dict[str, Any] = {
                "model": model,
                "messages": question(f"Question {i % 8}?", i % 16),
                "max_tokens": 12,
                "temperature": 1.0 if i % 3 else 0.0,
                "seed": i,
            }
            if i % 2:
                answer = await client.chat.completions.create(**settings)
                return answer.choices[0].message.content or ""
            parts = []
            async for chunk in await client.chat.completions.create(**settings, stream=True):
                parts += [c.delta.content or "" for c in chunk.choices]
            return "".join(parts)

        return await asyncio.gather(*(ask(i) for i in range(count)))


def memory(server: LiveServer) -> int:
    """Resident bytes of the server and its engine."""
    root = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)])


async def test_64_at_once_are_all_answered_the_same_and_memory_stays_flat(live_server: LiveServer) -> None:
    model = model_of(live_server)
    first = await ask_many(live_server, model, 64)
    wait_idle(live_server)
    assert metric(live_server, "specvlm:kv_cache_usage_perc") == 0.0
    before = memory(live_server)
    for _ in range(3):
        assert await ask_many(live_server, model, 64) == first
    wait_idle(live_server)
    assert metric(live_server, "specvlm:kv_cache_usage_perc") == 0.0, "pages are not free or cached"
    grown = memory(live_server) - before
    assert grown < 64 << 20, f"three more rounds took {grown >> 20} MiB"


def test_a_client_that_leaves_stops_its_request(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    stream = client.chat.completions.create(
        model=model,
        messages=question("Tell me everything.", 5),
        stream=True,
        max_tokens=400,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    generated = metric(live_server, "specvlm:generation_tokens_total")
    stream.close()
    wait_idle(live_server)
    assert metric(live_server, "specvlm:generation_tokens_total") - generated < 380
    assert metric(live_server, "specvlm:kv_cache_usage_perc") == 0.0


def engine_of(server: LiveServer) -> psutil.Process:
    children = psutil.Process(server.process.pid).children()
    (engine,) = [child for child in children if "run_module('engine'" in " ".join(child.cmdline())]
    return engine


def test_a_killed_engine_ends_streams_and_comes_back(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    with serve(tiny("llava"), tmp_path) as server:
        client, model = client_of(server), model_of(server)
        settings: dict[str, Any] = {"model": model, "messages": question("Go on.", 3), "temperature": 0}
        before = client.chat.completions.create(**settings, max_tokens=8).choices[0].message.content
        stream = client.chat.completions.create(
            **settings, stream=True, max_tokens=450, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        os.kill(engine_of(server).pid, signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        refused = httpx.post(f"{server.base_url}/chat/completions", json=settings)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        deadline = time.monotonic() + 90
        while httpx.get(f"{server.url}/ready").status_code != 200:
            assert time.monotonic() < deadline, "the engine did not come back"
            time.sleep(0.2)
        after = client.chat.completions.create(**settings, max_tokens=8).choices[0].message.content
        assert after == before
