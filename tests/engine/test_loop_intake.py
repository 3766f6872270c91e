"""What arrives in floods must not keep running requests waiting, and nothing of it may be lost."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Iterator
from itertools import groupby

import msgspec
import pytest

from engine.loop import EngineLoop
from engine.messages import AbortRequest, ClientMessage, GenerateRequest, Shutdown, StepReport
from tests.engine.fake_core import FORGET, FakeCore, expected, make_request
from tests.engine.inproc_client import InprocClient

ADD_SECONDS = 0.002


class Clock:
    """The loop's: only adding takes time, however crowded this machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("engine.loop.time", clock)
    return clock


class SlowToAdd(FakeCore):
    """Like the real core with prompts of a thousand tokens. ``calls`` says what it was asked for."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.calls: list[str] = []
        self.added: list[GenerateRequest] = []

    def add(self, request: GenerateRequest) -> None:
        self.clock.now += ADD_SECONDS
        self.calls.append("add")
        self.added.append(request)
        super().add(request)

    def step(self) -> StepReport:
        self.calls.append("step")
        return super().step()


def serve(core: FakeCore, messages: list[ClientMessage]) -> list[StepReport]:
    """Reports of a loop for which ``messages`` have all arrived once its first request runs."""
    reports: list[StepReport] = []
    arrived: deque[ClientMessage] = deque([make_request("first", max_tokens=1000)])

    def receive(timeout: float) -> Iterator[ClientMessage]:
        if reports and messages:
            arrived.extend(messages)
            messages.clear()
        if not arrived and timeout > 0:
            yield Shutdown()
        while arrived:  # as a socket: what was read is gone
            yield arrived.popleft()

    EngineLoop(core).run(receive, reports.append)
    return reports


def endings(report: StepReport) -> dict[str, str]:
    return {output.request_id: output.finish_reason for output in report.outputs if output.finish_reason}


def test_a_flood_of_requests_is_added_between_steps_a_few_at_a_time(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood = [make_request(f"r{i}", i, max_tokens=1 + i % 3) for i in range(60)]
    reports = serve(core, list(flood))
    longest = max(len(list(run)) for call, run in groupby(core.calls) if call == "add")
    assert longest <= 4  # 5 ms' worth
    tokens: dict[str, list[int]] = {request.request_id: [] for request in flood}
    for output in (output for report in reports for output in report.outputs):
        if output.request_id != "first":
            tokens[output.request_id] += output.token_ids
    assert tokens == {request.request_id: expected(request) for request in flood}


def test_aborts_behind_a_flood_are_heard_before_it_is_added(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(60)]
    reports = serve(core, [*flood, AbortRequest(request_ids=["first", "r59", "unknown"])])
    heard = [i for i, report in enumerate(reports) if endings(report).get("first") == "abort"]
    assert heard[0] == 1  # the first step after they came
    assert core.calls.count("add") == 60  # r59 was not
    assert Counter(name for report in reports for name in endings(report)) == Counter(
        ["first", *(f"r{i}" for i in range(60))]
    )


def test_shutdown_behind_a_flood_ends_it_without_adding_it(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(60)]
    reports = serve(core, [*flood, Shutdown()])
    assert core.calls.count("add") < 10
    assert sorted(name for report in reports for name in endings(report)) == sorted(
        ["first", *(f"r{i}" for i in range(60))]
    )
    assert endings(reports[-1])["r59"] == "abort"


def test_an_id_that_waits_to_be_added_is_in_use(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(20)]
    reports = serve(core, [*flood, make_request("r19", max_tokens=9)])
    assert core.calls.count("add") == 21
    assert sum("r19" in endings(report) for report in reports) == 1


def test_steps_are_taken_while_messages_never_cease() -> None:
    begin = time.monotonic()
    reports: list[StepReport] = []
    started = iter([[make_request("a", max_tokens=1)]])

    def receive(timeout: float) -> Iterator[ClientMessage]:
        yield from next(started, [])
        while not any(map(endings, reports)):
            assert time.monotonic() - begin < 2, "no step was taken"
            yield AbortRequest(request_ids=["unknown"])
        yield Shutdown()

    EngineLoop(FakeCore()).run(receive, reports.append)
    assert endings(reports[0]) == {"a": "length"}


def test_a_forgotten_request_does_not_hold_up_what_arrived_behind_it() -> None:
    reports: list[StepReport] = []
    waiting = iter([[make_request("a", FORGET), make_request("b", max_tokens=1)]])
    with pytest.raises(RuntimeError, match="idle"):
        EngineLoop(FakeCore()).run(lambda timeout: next(waiting, []), reports.append)
    assert [endings(report) for report in reports] == [{"b": "length"}, {"a": "error"}]


def test_the_inbox_in_process_keeps_what_was_not_taken() -> None:
    client = InprocClient(FakeCore())
    for i in range(3):
        client._send(make_request(f"r{i}"))
    for i in range(3):
        received = client._receive(0.0)
        message = next(iter(received))
        assert isinstance(message, GenerateRequest)
        assert message.request_id == f"r{i}"
        received.close()  # type: ignore[attr-defined]
    with pytest.raises(queue.Empty):
        client._inbox.get_nowait()


def test_a_flood_goes_on_being_added_when_nothing_more_arrives(clock: Clock) -> None:
    """At 2 ms for each, two or three fit between two steps; with one a step few would ever run together."""
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(60)]
    serve(core, flood)
    first, *runs = [len(list(run)) for call, run in groupby(core.calls) if call == "add"]
    assert first == 1
    assert runs == [3] * 20


def test_who_waits_to_be_added_is_counted_and_told_how_long(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(60)]
    reports = serve(core, flood)
    assert max(report.stats.num_waiting for report in reports) == 60 - 3
    assert reports[-1].stats.num_waiting == 0
    arrivals = [request.arrived_at for request in core.added]
    assert arrivals == [1000.0] + [1000.0 + ADD_SECONDS] * 60  # when they came, not when their turn was


def test_the_urgent_are_added_before_those_who_came_earlier(clock: Clock) -> None:
    core = SlowToAdd(clock)
    flood: list[ClientMessage] = [make_request(f"r{i}", max_tokens=1) for i in range(60)]
    urgent = msgspec.structs.replace(make_request("urgent", max_tokens=1), priority=-1)
    serve(core, [*flood, urgent])
    assert core.added[1].request_id == "urgent"
    rest = [request.request_id for request in core.added if request.priority == 0]
    assert rest == ["first", *(f"r{i}" for i in range(60))]
