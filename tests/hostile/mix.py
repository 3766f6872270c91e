"""Requests of every kind, drawn from a seed: texts, pictures (a few large), streams, responses, forms,
calls, several answers, clients that leave, and bad ones. What a good one is answered alone, it must be
answered in any crowd.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.http.test_live_openai import data_url

Body = dict[str, Any]

FORM = {
    "type": "object",
    "properties": {"sides": {"type": "integer", "minimum": 1, "maximum": 9}, "red": {"type": "boolean"}},
    "required": ["sides", "red"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": FORM}}
WITHOUT_EFFECT = ("cache_salt", "stream", "stream_options")
TOOL = {"type": "function", "function": {"name": "count", "strict": True, "parameters": FORM}}


@dataclass(frozen=True, slots=True)
class Request:
    """``leaves_after`` is the number of events (0: none) after which the client goes away; None stays."""

    path: str
    body: Body
    status: int = 200
    leaves_after: int | None = None

    @property
    def key(self) -> str:
        """What the answer depends on."""
        body = {name: value for name, value in self.body.items() if name not in WITHOUT_EFFECT}
        return json.dumps([self.path, body], sort_keys=True)


@dataclass(slots=True)
class Answer:
    """Texts and calls by choice, why they ended, how many logprobs each has, ``usage.completion_tokens``."""

    status: int
    texts: dict[int, str] = field(default_factory=dict)
    calls: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    num_logprobs: dict[int, int] = field(default_factory=dict)
    num_tokens: int | None = None


@cache
def large_url(number: int) -> str:
    """A photograph of 8, 12 or 20 megapixels, in some hundred kilobytes."""
    width, height = [(3264, 2448), (4000, 3000), (5472, 3648)][number]
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def messages(rng: random.Random, *, pictures: int) -> list[Body]:
    text = rng.choice(["What is this?", "How many shapes are there?", "red green blue"])
    parts: list[Body] = [{"type": "text", "text": text}]
    for _ in range(pictures):
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(rng.randrange(3))}})
    return [{"role": "user", "content": parts}]


def sampling(rng: random.Random) -> Body:
    if rng.random() < 0.5:
        return {"temperature": 0, "max_tokens": rng.choice([4, 24])}
    return {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(2), "max_tokens": rng.choice([4, 24])}


def good(rng: random.Random) -> Request:
    """A request that is answered, drawn from some hundred different ones."""
    kinds = {"text": 5, "picture": 5, "two": 3, "several": 3, "form": 3, "call": 3, "completion": 3}
    (kind,) = rng.choices([*kinds, "response", "logprobs", "large"], [*kinds.values(), 2, 2, 0.3])
    if kind == "response":
        return response(rng)
    if kind == "completion":
        path, body = "/completions", {"prompt": rng.choice(["red green", "a picture of a"]), **sampling(rng)}
    else:
        pictures = {"picture": 1, "two": 2, "several": rng.randrange(2)}.get(kind, 0)
        path, body = "/chat/completions", {"messages": messages(rng, pictures=pictures), **sampling(rng)}
    match kind:
        case "large":
            picture = {"type": "image_url", "image_url": {"url": large_url(rng.randrange(3))}}
            body["messages"][0]["content"].insert(0, picture)
        case "logprobs":
            body |= {"logprobs": True, "top_logprobs": 3}
        case "several":
            body["n"] = rng.choice([2, 3])
        case "form":
            body |= {"response_format": SCHEMA, "max_tokens": 60}
        case "call":
            body |= {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80}
    if rng.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request(path, body)


def response(rng: random.Random) -> Request:
    told = sampling(rng)
    told["max_output_tokens"] = told.pop("max_tokens")
    parts: list[Body] = [{"type": "input_text", "text": rng.choice(["What is this?", "red green blue"])}]
    if rng.random() < 0.5:
        parts.append({"type": "input_image", "image_url": data_url(rng.randrange(3))})
    body = {"input": [{"role": "user", "content": parts}], **told}
    return Request("/responses", body | ({"stream": True} if rng.random() < 0.5 else {}))


def long(number: int) -> Request:
    """One of two that fill many pages."""
    text = {"role": "user", "content": ["What is this?", "red green blue"][number % 2]}
    body = {"messages": [text], "temperature": 0, "max_tokens": 120, "ignore_eos": True}
    return Request("/chat/completions", body)


def leaving(rng: random.Random) -> Request:
    """A client that goes away: before its answer, or after a few events of it."""
    stream = rng.random() < 0.6
    long = {"max_tokens": 300, "ignore_eos": True, "stream": stream}
    body = {"messages": messages(rng, pictures=rng.randrange(2)), "temperature": 0, **long}
    return Request("/chat/completions", body, leaves_after=rng.randrange(4) if stream else 0)


def bad(rng: random.Random) -> Request:
    """A request that is refused, each for another reason."""
    asked = {"messages": messages(rng, pictures=0)}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    private = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    wrong: list[tuple[Body, int]] = [
        ({"messages": []}, 400),
        (asked | {"no_such_field": 1}, 400),
        (asked | {"temperature": "hot"}, 400),
        (asked | {"model": "another"}, 404),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400),
        ({"messages": [{"role": "user", "content": [broken]}]}, 400),
        ({"messages": [{"role": "user", "content": [private]}]}, 400),
        (
            asked
            | {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "?"}},
                }
            },
            400,
        ),
    ]
    body, status = rng.choice(wrong)
    return Request("/chat/completions", body, status=status)


def draw(seed: int, count: int, *, salt: str = "") -> list[Request]:
    """``count`` requests: of ten, eight that stay for an answer, one that leaves, and one that is refused."""
    rng = random.Random(seed)
    kinds = [good] * 8 + [leaving, bad]
    drawn = [rng.choice(kinds)(rng) for _ in range(count)]
    return [replace(one, body=one.body | {"cache_salt": salt}) for one in drawn] if salt else drawn


async def send(client: httpx.AsyncClient, request: Request) -> Answer | None:
    """What came back; None where the client left, as it meant to."""
    if request.leaves_after == 0:
        try:
            async with asyncio.timeout(0.05):
                await client.post(request.path, json=request.body)
        except TimeoutError:
            return None
        return None
    if not request.body.get("stream"):
        response = await client.post(request.path, json=request.body)
        return whole(response)
    async with client.stream("POST", request.path, json=request.body) as response:
        if response.status_code != 200:
            return Answer(response.status_code)
        return await streamed(response, request.leaves_after)


def gain(answer: Answer, choice: Body) -> None:
    """Take in what a choice says, whole or a piece of it. Text and calls have no order among each other."""
    index, told = choice["index"], choice.get("message") or choice.get("delta") or {}
    text = choice["text"] if "text" in choice else told.get("content") or ""
    calls = [call["function"] for call in told.get("tool_calls") or []]
    called = "".join((call.get("name") or "") + (call.get("arguments") or "") for call in calls)
    answer.texts[index] = answer.texts.get(index, "") + text
    answer.calls[index] = answer.calls.get(index, "") + called
    logprobs = choice.get("logprobs") or {}
    answer.num_logprobs[index] = answer.num_logprobs.get(index, 0) + len(logprobs.get("content") or [])


def whole(response: httpx.Response) -> Answer:
    answer = Answer(response.status_code)
    if response.status_code == 200:
        document = response.json()
        if document["object"] == "response":
            return responded(answer, document)
        for choice in document["choices"]:
            gain(answer, choice)
            answer.reasons[choice["index"]] = choice["finish_reason"]
        answer.num_tokens = document["usage"]["completion_tokens"]
    return answer


def responded(answer: Answer, document: Body) -> Answer:
    answer.texts[0] = "".join(part["text"] for item in document["output"] for part in item["content"])
    answer.reasons[0] = document["status"]
    answer.num_tokens = document["usage"]["output_tokens"]
    return answer


async def streamed(response: httpx.Response, leaves_after: int | None) -> Answer | None:
    answer, num_events, ended = Answer(response.status_code), 0, False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        assert not ended, "something came after [DONE]"
        if line == "data: [DONE]":
            ended = True
            continue
        num_events += 1
        if num_events == leaves_after:
            return None
        event = json.loads(line.removeprefix("data: "))
        if event.get("type") in ("response.completed", "response.incomplete"):
            responded(answer, event["response"])
            ended = True
        elif "type" not in event:
            add(answer, event)
    assert ended, "a stream ended without its end"
    return answer


def add(answer: Answer, chunk: Body) -> None:
    """Take a chunk of a stream in."""
    assert "error" not in chunk, chunk
    for choice in chunk["choices"]:
        index = choice["index"]
        gain(answer, choice)
        if choice["finish_reason"]:
            assert index not in answer.reasons, "a choice ended twice"
            answer.reasons[index] = choice["finish_reason"]
    if chunk.get("usage"):
        answer.num_tokens = chunk["usage"]["completion_tokens"]
