"""Whole runs against live servers: what is sent, in which order, and what is printed of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load.document import without_key
from benchmarks.load.errors import BenchError
from benchmarks.load.plot import draw
from benchmarks.load.run import bench
from benchmarks.load.settings import BenchSettings
from benchmarks.load.table import render
from benchmarks.load.targets import sides
from engine.client import EngineDeadError, RequestRejectedError
from engine.messages import GenerateRequest, RequestOutput
from tests.benchmarks.load.peer import Peer
from tests.server.conftest import Live, start_live, stop_live

LATENCY = {"mean": float, "p50": float, "p90": float, "p95": float, "p99": float, "max": float}
SPECULATION = {
    "num_spec_steps": int,
    "num_draft_tokens": int,
    "num_accepted_draft_tokens": int,
    "num_spec_tokens": int,
    "visual_tokens": int,
    "draft_visual_tokens": type(None),
    "compressors": {},
    "acceptance_histogram": list,
    "mean_acceptance_length": float,
    "draft_acceptance_rate": float,
}
SIDE = {
    "requests": int,
    "failed": int,
    "errors": {},
    "finish_reasons": {"stop": int},
    "prompt_tokens": int,
    "output_tokens": int,
    "tokens_per_second": float,
    "requests_per_second": float,
    "ttft": LATENCY,
    "itl": LATENCY,
    "tpot": LATENCY,
    "e2e": LATENCY,
    "goodput": {"limits": {"ttft": float}, "requests_per_second": float, "share": float},
    "speculation": SPECULATION,
    "windows": list,
}
DOCUMENT = {
    "format": int,
    "incomplete": bool,
    "argv": list,
    "started_unix": int,
    "seconds": float,
    "machine": dict,
    "load": dict,
    "warnings": list,
    "settings": dict,
    "sides": list,
    "points": list,
    "averages": list,
}
ANSWER = {
    "start": float,
    "latency": float,
    "times": list,
    "prompt_tokens": int,
    "output_tokens": int,
    "finish_reason": str,
    "speculation": dict,
    "error": type(None),
}


def assert_shape(value: Any, shape: Any, where: str = "$") -> None:
    """Exactly these keys with these types: what others read must not change unnoticed."""
    if isinstance(shape, dict):
        assert value.keys() == shape.keys(), where
        for name, inner in shape.items():
            assert_shape(value[name], inner, f"{where}.{name}")
    else:
        assert isinstance(value, shape), f"{where} is {value!r}"


def settings(live: Live, questions: str, **more: Any) -> BenchSettings:
    base = {"url": live.url, "data": [questions], "num_prompts": 4, "concurrency": [2], "repeats": 1}
    return BenchSettings(**base | more)


def test_the_document_has_the_shape_that_its_format_says(live: Live, questions: str) -> None:
    live.engine.answer = live.engine.says("Hello, world!", step=4, drafts=True)
    document = bench(settings(live, questions, goodput=["ttft:5000"]))
    document = json.loads(json.dumps(document))
    assert document["format"] == 1, "raise it when the shape below changes"
    assert_shape(document, DOCUMENT)
    [point] = document["points"]
    assert point.keys() == {"data", "temperature", "concurrency", "sides", "comparison"}
    assert_shape(point["sides"]["server"], SIDE)
    [window] = point["sides"]["server"]["windows"]
    assert window.keys() == {"seconds", "answers"}
    for answer in window["answers"]:
        assert_shape(answer, ANSWER)
        assert len(answer["times"]) == 4, "13 bytes in steps of four"
    side = point["sides"]["server"]
    assert (side["requests"], side["failed"], side["finish_reasons"]) == (4, 0, {"stop": 4})
    assert side["goodput"]["share"] == 1.0
    assert "Hello" not in json.dumps(document), "answers are not kept"


def test_two_sides_are_measured_in_turn_with_the_same_questions(live: Live, questions: str) -> None:
    live.engine.answer = live.engine.says("Hello, world!", step=4, drafts=True)
    document = bench(settings(live, questions, compare=["speculation", "plain"], repeats=3))
    asked = live.engine.requests[2:]  # the first two greeted
    order = [request.speculative.enabled for request in asked]
    assert order == [side for side in (True, False, False, True, True, False) for _ in range(4)]
    salts = [request.cache_salt for request in asked]
    assert len(set(salts)) == 6, "one a window: none lives on the cache of another"
    first, second = asked[:4], asked[4:8]
    key = lambda request: (request.prompt.token_ids, request.sampling.seed)  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, second))
    [point] = document["points"]
    assert point["comparison"]["same_answers"] == point["comparison"]["answers"] == 12
    speed_up = point["comparison"]["speed_up"]
    assert len(speed_up["raw"]) == 3
    rates = [
        [
            sum(a["output_tokens"] for a in w["answers"]) / w["seconds"]
            for w in point["sides"][label]["windows"]
        ]
        for label in ("speculation", "plain")
    ]
    assert speed_up["raw"] == pytest.approx([a / b for a, b in zip(*rates, strict=True)], rel=1e-3)
    assert point["sides"]["speculation"]["speculation"]["mean_acceptance_length"] > 1
    assert point["sides"]["plain"]["speculation"]["mean_acceptance_length"] is None
    assert "same text 12/12" in render(document)


def test_different_answers_are_counted(live: Live, questions: str) -> None:
    says, other = live.engine.says("yes"), live.engine.says("no")

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        differs = not request.speculative.enabled and request.sampling.seed in (1, 2, 3)
        async for output in (other if differs else says)(request):
            yield output

    live.engine.answer = answer
    [point] = bench(settings(live, questions, compare=["speculation", "plain"]))["points"]
    assert (point["comparison"]["answers"], point["comparison"]["same_answers"]) == (4, 1)


def test_a_closed_loop_keeps_as_many_open_as_it_says(live: Live, questions: str) -> None:
    seen: list[int] = []
    says = live.engine.says("Hello!", pause=0.01)

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        async for output in says(request):
            seen.append(live.engine.num_open)
            yield output

    live.engine.answer = answer
    document = bench(settings(live, questions, concurrency=[1, 3]))
    assert max(seen) == 3
    assert [point["concurrency"] for point in document["points"]] == [1, 3]
    starts = [a["start"] for a in document["points"][0]["sides"]["server"]["windows"][0]["answers"]]
    ends = [
        a["start"] + a["latency"] for a in document["points"][0]["sides"]["server"]["windows"][0]["answers"]
    ]
    assert all(later >= earlier for earlier, later in zip(ends, starts[1:], strict=False))


def test_requests_carry_what_was_asked_for(live: Live, questions: str) -> None:
    bench(
        settings(
            live,
            questions,
            temperature=[0.5],
            max_tokens=9,
            seed=40,
            fields={"top_p": 0.25, "ignore_eos": True},
            compare=[{"top_k": 3}, {"speculative": {"num_steps": 1}}],
        )
    )
    one, other = live.engine.requests[2], live.engine.requests[6]
    assert (one.sampling.temperature, one.sampling.max_tokens, one.sampling.top_p) == (0.5, 9, 0.25)
    assert (one.sampling.top_k, one.sampling.ignore_eos, one.speculative.num_steps) == (3, True, None)
    assert (other.sampling.top_k, other.speculative.num_steps) == (live.engine.requests[1].sampling.top_k, 1)
    assert sorted(request.sampling.seed for request in live.engine.requests[2:6]) == [40, 41, 42, 43]


def test_failed_requests_are_counted_and_the_others_measured(live: Live, questions: str) -> None:
    says, refuses = (
        live.engine.says("yes"),
        live.engine.rejects(RequestRejectedError("invalid_request", "not today")),
    )
    dies = live.engine.rejects(EngineDeadError("gone"), after="y")

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        async for output in {1: refuses, 2: dies}.get(request.sampling.seed or 0, says)(request):
            yield output

    live.engine.answer = answer
    side = bench(settings(live, questions))["points"][0]["sides"]["server"]
    assert (side["requests"], side["failed"]) == (4, 2)
    assert side["finish_reasons"] == {"stop": 2}
    refused, died = sorted(side["errors"])
    assert refused == "400: not today"
    assert died == "The model stopped while it was answering.", "as the stream's last event said"


def test_a_peer_is_measured_by_its_counters_and_without_our_extensions(peer: Peer, questions: str) -> None:
    document = bench(BenchSettings(url=peer.url, data=[questions], num_prompts=4, concurrency=[2], repeats=1))
    side = document["points"][0]["sides"]["server"]
    assert side["speculation"]["mean_acceptance_length"] == (1 + 2) / 2
    assert side["speculation"]["draft_acceptance_rate"] == pytest.approx(1 / 6)
    assert side["output_tokens"] == 12
    assert not any({"cache_salt", "speculative"} & body.keys() for body in peer.bodies)
    assert any("cache_salt" in warning for warning in document["warnings"])
    assert document["sides"][0]["model"] == "peer-vlm"


def test_ours_beside_a_peer(live: Live, peer: Peer, questions: str, tmp_path: Path) -> None:
    compare = [f"ours={live.url}/v1", f"theirs={peer.url}"]
    options = {"compare": compare, "num_prompts": 4, "concurrency": [1, 2], "temperature": [0.0, 1.0]}
    document = bench(BenchSettings(data=[questions, questions], repeats=1, **options))
    assert [side["model"] for side in document["sides"]] == ["fake-vlm", "peer-vlm"]
    assert len(document["points"]) == 8
    table = render(document)
    assert table.count("first over second") == 8 + 4, "eight points, four averages over both sets"
    [average, *_] = document["averages"]
    medians = [
        point["comparison"]["speed_up"]["median"]
        for point in document["points"]
        if (point["temperature"], point["concurrency"]) == (0.0, 1)
    ]
    assert average["speed_up"] == pytest.approx(sum(medians) / 2)
    assert average["mean_acceptance_length"] == {"ours": None, "theirs": 1.5}
    figure = draw(document)
    panels = figure.axes
    assert [len(panel.lines) for panel in panels] == 2 * [2, 4, 4, 4, 4, 2], (
        "rows by data and temperature, lines by side; no goodput, as no limit was stated"
    )
    assert "ours: fake-vlm, theirs: peer-vlm" in figure.get_suptitle()
    assert panels[5].get_ylabel() == "tokens per round"
    assert list(panels[5].lines[1].get_ydata()) == [1.5] * 4, "both sets, at one and two at a time"
    theirs = [p["sides"]["theirs"]["tokens_per_second"] for p in document["points"] if p["temperature"] == 0]
    assert sorted(panels[0].lines[1].get_ydata()) == sorted(theirs)


def test_what_cannot_be_measured_is_said(live: Live, peer: Peer, questions: str) -> None:
    def refused(complaint: str, **more: Any) -> None:
        base = {"data": [questions], "num_prompts": 4, "concurrency": [2], "repeats": 1}
        with pytest.raises(BenchError, match=complaint):
            bench(BenchSettings(**base | more))

    refused("127.0.0.1:9/v1 cannot be queried", url="http://127.0.0.1:9")
    refused("has no model 'other'; it has fake-vlm", url=live.url, model="other")
    refused("answered 404", url=live.url + "/v2")
    refused("does not report support for switching", url=peer.url, compare=["speculation", "plain"])
    refused("both sides are called", compare=[peer.url, peer.url])
    refused("is not 'speculation' or 'plain'", url=peer.url, compare=["speculation", "off"])
    refused("must look like http://", url="localhost:8000")
    refused("4 questions, too few", url=peer.url, num_prompts=8, concurrency=[8])
    peer.usage = False
    refused("reports no usage", url=peer.url)
    peer.key = "secret"
    refused(r"requires a key \(401: Incorrect API key provided\); set --api-key", url=peer.url)
    live.engine.answer = live.engine.rejects(RequestRejectedError("invalid_request", "not today"))
    refused("did not answer a test request: 400: .*not today", url=live.url)


def test_a_server_that_goes_away_ends_the_run(questions: str) -> None:
    live = start_live()
    says = live.engine.says("yes")

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        if len(live.engine.requests) > 1:
            live.engine.state = "failed"
        await asyncio.sleep(0)
        async for output in says(request):
            yield output

    live.engine.answer = answer
    try:
        with pytest.raises(BenchError, match="answered none of 4 requests"):
            bench(settings(live, questions))
    finally:
        stop_live(live)


def test_a_key_is_sent_and_never_shown(
    peer: Peer, questions: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.key = "hunter2"
    given = {"url": peer.url, "data": [questions], "num_prompts": 4, "concurrency": [2]}
    document = bench(BenchSettings(**given, repeats=1, api_key="hunter2"))
    assert "hunter2" not in json.dumps(document)
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    assert "hunter2" not in json.dumps(bench(BenchSettings(**given, repeats=1)))
    assert without_key(["bench", "--api-key", "a", "--url", "u", "--api-key=b"]) == [
        *("bench", "--api-key", "…", "--url", "u", "--api-key=…"),
    ]


def test_sides_have_names_and_urls() -> None:
    compare = ["http://a:1", "b.c=https://d/v1/"]
    assert [(side.label, side.url) for side in sides(BenchSettings(compare=compare))] == [
        ("a:1", "http://a:1/v1"),
        ("b.c", "https://d/v1"),
    ]
    own = sides(BenchSettings(compare=["plain", {"top_k": 2}]))
    assert [(side.label, side.url) for side in own] == [("plain", None), ('{"top_k": 2}', None)]
