"""Requests of every kind, drawn from a seed: texts, pictures, streams, forms, calls, several answers, clients
that leave, and bad ones. What a good one is answered alone, it must be answered in any crowd.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.http.test_live_openai import data_url

Body = dict[str, Any]

FORM = {
    "type": "object",
    "properties": {"sides": {"type": "integer", "minimum": 1, "maximum": 9}, "red": {"type": "boolean"}},
    "required": ["sides", "red"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": FORM}}
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
        return json.dumps([self.path, self.body], sort_keys=True)


@dataclass(slots=True)
class Answer:
    """Texts by choice, why they ended, and ``usage.completion_tokens``."""

    status: int
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    num_tokens: int | None = None


def messages(rng: random.Random, *, pictures: int) -> list[Body]:
    text = rng.choice(["What is this?", "Tell me something.", "How many shapes are there?", "red green blue"])
    parts: list[Body] = [{"type": "text", "text": text}]
    for _ in range(pictures):
        parts.insert(0, {"type": "image_url", "image_url": {"url": data_url(rng.randrange(6))}})
    return [{"role": "user", "content": parts}]


def sampling(rng: random.Random) -> Body:
    if rng.random() < 0.5:
        return {"temperature": 0, "max_tokens": rng.choice([4, 12, 30])}
    return {"temperature": 1.0, "top_p": 0.9, "seed": rng.randrange(5), "max_tokens": rng.choice([4, 12, 30])}


def good(rng: random.Random) -> Request:
    """A request that is answered, drawn from a few hundred different ones."""
    kind = rng.choice(["text", "text", "picture", "picture", "two", "several", "form", "call", "completion"])
    if kind == "completion":
        path, body = "/completions", {"prompt": rng.choice(["red green", "a picture of a"]), **sampling(rng)}
    else:
        pictures = {"picture": 1, "two": 2, "several": rng.randrange(2)}.get(kind, 0)
        path, body = "/chat/completions", {"messages": messages(rng, pictures=pictures), **sampling(rng)}
    match kind:
        case "several":
            body["n"] = rng.choice([2, 3])
        case "form":
            body |= {"response_format": SCHEMA, "max_tokens": 60}
        case "call":
            body |= {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80}
    if rng.random() < 0.5:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Request(path, body)


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


def draw(seed: int, count: int) -> list[Request]:
    """``count`` requests: of ten, eight that stay for an answer, one that leaves, and one that is refused."""
    rng = random.Random(seed)
    kinds = [good] * 8 + [leaving, bad]
    return [rng.choice(kinds)(rng) for _ in range(count)]


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


def said(message: Body) -> str:
    """Text and calls of a message or a delta, as one text."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return (message.get("content") or "") + "".join(
        (call.get("name") or "") + (call.get("arguments") or "") for call in calls
    )


def whole(response: httpx.Response) -> Answer:
    answer = Answer(response.status_code)
    if response.status_code == 200:
        document = response.json()
        for choice in document["choices"]:
            answer.texts[choice["index"]] = choice["text"] if "text" in choice else said(choice["message"])
            answer.reasons[choice["index"]] = choice["finish_reason"]
        answer.num_tokens = document["usage"]["completion_tokens"]
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
        add(answer, json.loads(line.removeprefix("data: ")))
    assert ended, "a stream ended without its end"
    return answer


def add(answer: Answer, chunk: Body) -> None:
    """Take a chunk of a stream in."""
    assert "error" not in chunk, chunk
    for choice in chunk["choices"]:
        index = choice["index"]
        piece = choice["text"] if "text" in choice else said(choice["delta"])
        answer.texts[index] = answer.texts.get(index, "") + piece
        if choice["finish_reason"]:
            assert index not in answer.reasons, "a choice ended twice"
            answer.reasons[index] = choice["finish_reason"]
    if chunk.get("usage"):
        answer.num_tokens = chunk["usage"]["completion_tokens"]
