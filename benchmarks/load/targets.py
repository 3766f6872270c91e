"""The sides of a run, and what each server says about itself before timing starts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from benchmarks.load.client import reason, record
from benchmarks.load.errors import BenchError
from benchmarks.load.settings import BenchSettings
from benchmarks.load.stream import Answer, parse

PLAIN: dict[str, Any] = {"speculative": {"enabled": False}}
_WORDS: dict[str, dict[str, Any]] = {"speculation": {}, "plain": PLAIN}
_NAMED_URL = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<url>https?://.+)")


@dataclass(frozen=True, slots=True)
class Side:
    """A side of the run. ``fields`` are added to each of its requests.

    ``url`` ends in the API's base path, without a slash; ``None`` is our own server.
    """

    label: str
    url: str | None
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """A side whose server has answered. ``server``: the content of its ``/version``.

    ``salted``: whether it accepts ``cache_salt``. ``reports``: whether its answers report on speculation.
    """

    label: str
    url: str
    model: str
    fields: dict[str, Any]
    salted: bool
    reports: bool
    server: dict[str, Any] | None

    @property
    def chat(self) -> str:
        return f"{self.url}/chat/completions"

    def body(self, messages: Sequence[Any], *, salt: str, **sampling: Any) -> bytes:
        """Return the body of a streamed request. Runs with different ``salt`` share no cached prefix."""
        content = {"model": self.model, "messages": messages, "stream": True}
        content |= {"stream_options": {"include_usage": True}, **sampling, **self.fields}
        if self.salted:
            content["cache_salt"] = salt
        return json.dumps(content).encode()


def sides(settings: BenchSettings) -> list[Side]:
    """Return the side of the run, or the two sides of a comparison. Raises ``BenchError``."""
    base = base_url(settings.url) if settings.url is not None else None
    if not settings.compare:
        return [Side("server", base)]
    found = [_side(value, base) for value in settings.compare]
    if found[0].label == found[1].label:
        raise BenchError(
            f"both sides are called {found[0].label!r}; give them names, as in A={settings.compare[0]}"
        )
    return found


def _side(value: str | dict[str, Any], base: str | None) -> Side:
    if isinstance(value, dict):
        return Side(json.dumps(value), base, value)
    if value in _WORDS:
        return Side(value, base, _WORDS[value])
    match = _NAMED_URL.fullmatch(value)
    if match is None:
        words = " or ".join(map(repr, _WORDS))
        raise BenchError(f"--compare {value!r} is not {words}, a URL, or a JSON object of request fields")
    url = base_url(match["url"])
    return Side(match["name"] or urlsplit(url).netloc, url)


def base_url(url: str) -> str:
    """Return the base URL, with ``/v1`` added if ``url`` has no path. Raises ``BenchError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BenchError(f"--url {url!r} must look like http://127.0.0.1:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


async def meet(
    http: aiohttp.ClientSession, side: Side, *, wanted: str | None, fields: dict[str, Any]
) -> Target:
    """Ask the server for its models and one short answer. ``wanted``: the model; by default its first.

    Raises ``BenchError`` if the server cannot be used.
    """
    assert side.url is not None
    served = [str(entry["id"]) for entry in (await _get(http, side.url, "/models"))["data"]]
    if wanted is not None and served and wanted not in served:
        raise BenchError(f"{side.url} has no model {wanted!r}; it has {', '.join(served)}")
    if wanted is None and not served:
        raise BenchError(f"{side.url} lists no models; name one with --model")
    server = await _version(http, side.url)
    if side.fields == PLAIN and "speculative" not in (server or {}):
        raise BenchError(
            f"{side.url} does not report support for switching speculation per request; compare two URLs"
        )
    fields = fields | side.fields
    target = Target(side.label, side.url, wanted or served[0], fields, True, False, server)
    answer = await _greet(http, target)
    if answer.error is not None and re.match("4..: .*cache_salt", answer.error, re.DOTALL):
        target = replace(target, salted=False)
        answer = await _greet(http, target)
    if answer.error is not None:
        raise BenchError(f"{side.url} did not answer a test request: {answer.error}")
    return replace(target, reports=answer.speculation is not None)


async def _greet(http: aiohttp.ClientSession, target: Target) -> Answer:
    hello = [{"role": "user", "content": "Say hello."}]
    return parse(
        await record(http, target.chat, target.body(hello, salt="hello", max_tokens=8, temperature=0))
    )


async def _get(http: aiohttp.ClientSession, url: str, path: str) -> dict[str, Any]:
    try:
        async with http.get(url + path, allow_redirects=False) as response:
            body = await response.read()
            if response.status in (401, 403):
                raise BenchError(f"{url} requires a key ({response.status}: {reason(body)}); set --api-key")
            if response.status != 200:
                raise BenchError(f"{url}{path} answered {response.status}: {reason(body)}")
            found = json.loads(body)
    except TimeoutError as error:
        raise BenchError(f"{url} did not answer in time") from error
    except (aiohttp.ClientError, ValueError) as error:
        raise BenchError(f"{url} cannot be queried: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("data"), list):
        raise BenchError(f"{url}{path} did not return a list of models; is {url} an OpenAI API's base URL?")
    return found


async def _version(http: aiohttp.ClientSession, url: str) -> dict[str, Any] | None:
    """Return the content of ``/version`` next to the API, or ``None`` if there is none. vLLM has it too."""
    try:
        async with http.get(url.removesuffix("/v1") + "/version", allow_redirects=False) as response:
            found = json.loads(await response.read()) if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    return found if isinstance(found, dict) else None
