"""Runs the benchmark: measures every requested point in turn."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import aiohttp
from tqdm import tqdm

from benchmarks.load.client import closed_loop, open_session
from benchmarks.load.counters import counters, grown
from benchmarks.load.data import DataSet, read
from benchmarks.load.document import Document
from benchmarks.load.errors import BenchError
from benchmarks.load.metrics import Window
from benchmarks.load.report import comparison, side_document
from benchmarks.load.settings import BenchSettings
from benchmarks.load.stream import parse
from benchmarks.load.targets import Side, Target, meet, sides
from benchmarks.own_server import own_server
from benchmarks.timing import interleaved

LOAD_SECONDS = 1800.0
"""Time for our own server to become ready, as in docker-compose.yml: it may have to download its model."""

Keep = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Point:
    data: DataSet
    temperature: float
    concurrency: int


def bench(settings: BenchSettings, keep: Keep = lambda _: None) -> dict[str, Any]:
    """Run the benchmark and return its document.

    ``keep`` is called with the document so far after every point, in case the run does not finish. Raises
    ``BenchError``, ``ServerError`` or, for data files, ``TrainingError``.
    """
    found = sides(settings)
    data = read(settings)
    document = Document(settings)
    key = settings.api_key.get_secret_value() if settings.api_key else os.environ.get("OPENAI_API_KEY")
    with _served(settings, found) as reachable, asyncio.Runner() as runner:
        http = runner.run(open_session(key, settings.timeout))
        try:
            document.targets += [runner.run(_meet(http, side, own, settings)) for side, own in reachable]
            for point in _measure(runner, http, document.targets, data, settings):
                document.points.append(point)
                keep(document.so_far())
        finally:
            runner.run(http.close())
    return document.finished()


@contextmanager
def _served(settings: BenchSettings, found: Sequence[Side]) -> Iterator[list[tuple[Side, bool]]]:
    """Yield every side with a URL, and whether it is that of our own server, which runs during the block."""
    if all(side.url is not None for side in found):
        yield [(side, False) for side in found]
        return
    flags = ["--model", settings.model] if settings.model is not None else []
    print("starting a server …", file=sys.stderr, flush=True)
    flags += shlex.split(settings.serve)
    with own_server(flags, limit_seconds=LOAD_SECONDS, tell=_tell) as server:
        own = f"{server.url}/v1"
        yield [(replace(side, url=side.url or own), side.url is None) for side in found]


def _tell(seconds: float, line: str) -> None:
    print(f"waiting for the server, {seconds:.0f} s: {line[:160]}", file=sys.stderr, flush=True)


async def _meet(http: aiohttp.ClientSession, side: Side, own: bool, settings: BenchSettings) -> Target:
    """Contact a side's server. Our own server may serve a model folder under another name than its path."""
    return await meet(http, side, wanted=None if own else settings.model, fields=settings.fields)


def _measure(
    runner: asyncio.Runner,
    http: aiohttp.ClientSession,
    targets: Sequence[Target],
    data: Sequence[DataSet],
    settings: BenchSettings,
) -> Iterator[dict[str, Any]]:
    """Yield each point after measuring it."""
    todo = [Point(*point) for point in product(data, settings.temperature, settings.concurrency)]
    requests = sum(len(point.data.questions) for point in todo) * len(targets) * settings.repeats
    with tqdm(total=requests, unit="request", disable=None) as bar:
        for point in todo:
            bar.set_description(f"{point.data.name}, {point.concurrency} concurrent")

            def window(target: Target, index: int, point: Point = point) -> Window:
                return runner.run(_window(http, target, point, index, settings, bar))

            yield _point(point, targets, window, settings)


async def _window(
    http: aiohttp.ClientSession, target: Target, point: Point, index: int, settings: BenchSettings, bar: tqdm
) -> Window:
    """Ask all questions of the set once. Raises ``BenchError`` if none was answered."""
    # A new salt keeps repeated questions from being answered from the server's cache.
    salt = f"{time.time_ns()} {target.label} {index}"
    bodies = [
        target.body(
            messages,
            salt=salt,
            temperature=point.temperature,
            max_tokens=settings.max_tokens,
            seed=settings.seed + number,
        )
        for number, messages in enumerate(point.data.questions)
    ]
    before = {} if target.reports else await counters(http, target.url)
    seconds, recordings = await closed_loop(http, target.chat, bodies, point.concurrency, bar.update)
    after = await counters(http, target.url) if before else {}
    found = Window(seconds, [parse(recording) for recording in recordings], grown(before, after))
    if not found.tokens_per_second:
        why = next((answer.error for answer in found.answers if answer.error), "no answer has any tokens")
        raise BenchError(f"{target.url} answered none of {len(bodies)} requests: {why}")
    return found


def _point(
    point: Point,
    targets: Sequence[Target],
    window: Callable[[Target, int], Window],
    settings: BenchSettings,
) -> dict[str, Any]:
    windows: dict[str, list[Window]] = {target.label: [] for target in targets}

    def rate(target: Target, index: int) -> float:
        windows[target.label].append(window(target, index))
        return windows[target.label][-1].tokens_per_second

    ratio = None
    if len(targets) == 2:
        first, second = (partial(rate, target) for target in targets)
        ratio = interleaved(first, second, repeats=settings.repeats, warmup=0)["ratio"]
    else:
        for index in range(settings.repeats):
            rate(targets[0], index)
    return {
        "data": point.data.name,
        "temperature": point.temperature,
        "concurrency": point.concurrency,
        "sides": {label: side_document(found, settings.limits()) for label, found in windows.items()},
        "comparison": comparison(ratio, *windows.values()) if ratio is not None else None,
    }
