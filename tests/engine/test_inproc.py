"""The step loop, and the client that runs it in a thread."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from engine.client import EngineDeadError, RequestRejectedError
from engine.loop import EngineLoop, Unreadable, run_to_completion
from engine.messages import (
    AbortRequest,
    ClientMessage,
    GenerateRequest,
    RequestOutput,
    Shutdown,
    StepReport,
)
from tests.engine.clients import collect, outputs_of, until, until_idle
from tests.engine.fake_core import BREAK, FORGET, REJECT, FakeCore, Script, expected, make_request
from tests.engine.inproc_client import InprocClient


def run_loop(
    batches: list[list[ClientMessage | Unreadable]], core: FakeCore | None = None
) -> list[StepReport]:
    """Reports of a loop that receives one batch before each step, then ``Shutdown`` when idle."""
    reports: list[StepReport] = []
    waiting = iter(batches)

    def receive(timeout: float) -> Iterator[ClientMessage | Unreadable]:
        batch = next(waiting, None)
        if batch is not None:
            yield from batch
        elif timeout > 0:
            yield Shutdown()

    EngineLoop(core or FakeCore()).run(receive, reports.append)
    return reports


def endings(reports: list[StepReport]) -> list[tuple[str, str]]:
    outputs = [output for report in reports for output in report.outputs]
    return [(output.request_id, output.finish_reason) for output in outputs if output.finish_reason]


def test_loop_runs_requests_that_arrive_at_different_times() -> None:
    reports = run_loop([[make_request("a", max_tokens=3)], [make_request("b", max_tokens=1)], []])
    assert endings(reports) == [("b", "length"), ("a", "length")]


def test_abort_ends_a_request_in_the_next_step() -> None:
    reports = run_loop([[make_request("a", max_tokens=99)], [AbortRequest(request_ids=["a", "unknown"])]])
    assert [len(report.outputs) for report in reports] == [1, 1, 0]
    assert endings(reports) == [("a", "abort")]


def test_aborts_of_ended_requests_change_nothing() -> None:
    request = make_request("a", max_tokens=1)
    reports = run_loop([[request], [AbortRequest(request_ids=["a"])], [request]])
    assert endings(reports) == [("a", "length")] * 2


def test_shutdown_ends_what_is_open() -> None:
    reports = run_loop([[make_request("a", max_tokens=99), make_request("b", max_tokens=99)], [Shutdown()]])
    assert sorted(endings(reports)) == [("a", "abort"), ("b", "abort")]


def test_idle_loop_says_so_with_empty_reports() -> None:
    reports = run_loop([[], [], []])
    assert [report.outputs for report in reports] == [[]] * 4


def test_second_request_with_an_open_id_leaves_the_first_alone() -> None:
    reports = run_loop([[make_request("a", 5, max_tokens=2)], [make_request("a", 6, max_tokens=9)]])
    assert endings(reports) == [("a", "length")]


def test_unreadable_requests_are_answered_if_their_id_is_free() -> None:
    reports = run_loop(
        [[make_request("a", max_tokens=3)], [Unreadable("a"), Unreadable(None), Unreadable("b")]]
    )
    assert endings(reports) == [("b", "error"), ("a", "length")]
    (refusal,) = [output for report in reports for output in report.outputs if output.request_id == "b"]
    assert refusal.error is not None
    assert refusal.error.code == "invalid_request"


@pytest.mark.parametrize("trick", [BREAK, FORGET])
def test_broken_core_tells_every_open_request(trick: int) -> None:
    reports: list[StepReport] = []
    waiting = iter([[make_request("a", max_tokens=3)], [make_request("b", trick)]])
    with pytest.raises(RuntimeError):
        EngineLoop(FakeCore()).run(lambda timeout: next(waiting, []), reports.append)
    # A core that breaks takes all with it; one that forgets is found out when it has nothing else to do.
    wanted = [("a", "error"), ("b", "error")] if trick == BREAK else [("a", "length"), ("b", "error")]
    assert sorted(endings(reports)) == wanted
    assert "deadbeef" not in str(reports[-1])


def test_every_request_ends_once_whatever_arrives() -> None:
    random_ = random.Random(7)
    for _ in range(50):
        ids = [f"r{i}" for i in range(random_.randrange(1, 12))]
        batches: list[list[ClientMessage | Unreadable]] = [[] for _ in range(20)]
        for request_id in ids:
            at = random_.randrange(20)
            token = random_.choice([1, 2, REJECT])
            batches[at].append(make_request(request_id, token, max_tokens=random_.randrange(1, 9)))
            if random_.random() < 0.5:
                batches[random_.randrange(at, 20)].append(AbortRequest(request_ids=[request_id]))
        assert sorted(request_id for request_id, _ in endings(run_loop(batches))) == sorted(ids)


def test_run_to_completion_yields_every_token() -> None:
    requests = [make_request(f"r{i}", i, max_tokens=i) for i in range(1, 6)]
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for output in run_to_completion(FakeCore(), requests):
        tokens[output.request_id] += output.token_ids
    assert tokens == {request.request_id: expected(request) for request in requests}


class Interrupted(FakeCore):
    """Ctrl-C in one of its calls."""

    def __init__(self, call: str) -> None:
        super().__init__()
        self.call = call

    def add(self, request: GenerateRequest) -> None:
        super().add(request)
        self._interrupt("add", len(self._requests) == 2)

    def step(self) -> StepReport:
        report = super().step()
        self._interrupt("step", self.num_steps == 2)
        return report

    def _interrupt(self, call: str, now: bool) -> None:
        if call == self.call and now:
            self.call = ""
            raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["add", "step"])
def test_run_to_completion_interrupted_leaves_nothing_to_the_next_run(call: str) -> None:
    core = Interrupted(call)
    with pytest.raises(KeyboardInterrupt):
        list(run_to_completion(core, [make_request("a", 1, max_tokens=9), make_request("b", 2)]))
    assert not core.has_work
    tokens = [t for output in run_to_completion(core, [make_request("a", 7)]) for t in output.token_ids]
    assert tokens == expected(make_request("a", 7))


def test_run_to_completion_closed_early_aborts_the_rest() -> None:
    core = FakeCore()
    outputs = run_to_completion(core, [make_request("a", max_tokens=99), make_request("b", max_tokens=99)])
    next(outputs)
    outputs.close()  # type: ignore[attr-defined]
    assert not core.has_work


def test_run_to_completion_refuses_duplicate_ids() -> None:
    core = FakeCore()
    with pytest.raises(ValueError, match="in use"):
        list(run_to_completion(core, [make_request("a"), make_request("a")]))
    assert not core.has_work


@pytest.mark.parametrize("trick", [BREAK, FORGET])
def test_run_to_completion_raises_what_broke_the_core(trick: int) -> None:
    core = FakeCore()
    with pytest.raises(RuntimeError, match=r"broken|idle"):
        list(run_to_completion(core, [make_request("a", max_tokens=5), make_request("b", trick)]))
    assert not core.has_work


def test_run_to_completion_refuses_a_core_at_work() -> None:
    core = FakeCore()
    outputs = run_to_completion(core, [make_request("a", max_tokens=99)])
    next(outputs)
    with pytest.raises(RuntimeError, match="busy with other requests"):
        next(run_to_completion(core, [make_request("b")]))
    assert [output.request_id for output in outputs] == ["a"] * 98


def test_run_to_completion_draws_requests_as_they_are_needed() -> None:
    open_, most, drawn = set[str](), 0, []

    def draw() -> Iterator[GenerateRequest]:
        nonlocal most
        for i in range(20):
            drawn.append(request := make_request(f"r{i}", i, max_tokens=1 + i % 4))
            open_.add(request.request_id)
            most = max(most, len(open_))
            yield request

    tokens: dict[str, list[int]] = {}
    for output in run_to_completion(FakeCore(), draw(), max_open=3):
        tokens.setdefault(output.request_id, []).extend(output.token_ids)
        if output.finish_reason is not None:
            open_.remove(output.request_id)
    assert most == 3
    assert tokens == {request.request_id: expected(request) for request in drawn}
    assert len(drawn) == 20


@pytest.fixture
async def client() -> AsyncIterator[InprocClient]:
    client = InprocClient(FakeCore(Script(step_seconds=0.001)))
    await client.start()
    yield client
    await client.shutdown()
    assert [thread.name for thread in threading.enumerate()].count("engine") == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_client_streams(client: InprocClient) -> None:
    assert (await client.wait_ready()).model == "fake"
    requests = [make_request(f"r{i}", i, max_tokens=1 + i % 5) for i in range(50)]
    answers = await asyncio.gather(*(collect(client, request) for request in requests))
    assert answers == [expected(request) for request in requests]


async def test_client_rejects_one_request(client: InprocClient) -> None:
    good = asyncio.create_task(collect(client, make_request("good", max_tokens=20)))
    with pytest.raises(RequestRejectedError, match="too long") as caught:
        await collect(client, make_request("bad", REJECT))
    assert caught.value.code == "context_length_exceeded"
    assert len(await good) == 20


async def test_client_refuses_an_open_id(client: InprocClient) -> None:
    first = client.generate(make_request("a", max_tokens=10_000))
    await anext(first)
    with pytest.raises(ValueError, match="in use"):
        await collect(client, make_request("a"))
    await first.aclose()
    # Until the engine has ended it, the id stays taken: its last words must not reach another request.
    with pytest.raises(ValueError, match="in use"):
        await collect(client, make_request("a"))
    while True:
        try:
            assert await collect(client, make_request("a")) == expected(make_request("a"))
            break
        except ValueError:
            await asyncio.sleep(0.005)


async def test_client_leaving_early_aborts(client: InprocClient) -> None:
    generator = client.generate(make_request("a", max_tokens=10**9))
    await anext(generator)
    task = asyncio.create_task(collect(client, make_request("b", max_tokens=10**9)))
    await asyncio.sleep(0.01)
    await generator.aclose()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_idle(client)


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(client: InprocClient) -> None:
    random_ = random.Random(3)

    async def visit(name: str, patience: float) -> str:
        request = make_request(name, max_tokens=random_.randrange(1, 60))
        try:
            async with asyncio.timeout(patience):
                assert await collect(client, request) == expected(request)
        except TimeoutError:
            return "left"
        return "served"

    visits = [visit(f"r{i}", random_.uniform(0, 0.15)) for i in range(100)]
    assert set(await asyncio.gather(*visits)) == {"left", "served"}
    await until_idle(client)


async def test_listeners_see_reports_and_cannot_harm(client: InprocClient) -> None:
    seen: list[RequestOutput] = []

    def failing(report: StepReport) -> None:
        raise RuntimeError("listener")

    client.add_listener(failing)
    client.add_listener(lambda report: seen.extend(report.outputs))
    request = make_request("a")
    assert await collect(client, request) == expected(request)
    assert [token for output in seen for token in output.token_ids] == expected(request)
    assert client.stats.generation_tokens == 3


async def test_broken_core_fails_the_client(client: InprocClient) -> None:
    other = asyncio.create_task(collect(client, make_request("other", max_tokens=10**9)))
    await asyncio.sleep(0.01)
    with pytest.raises(RequestRejectedError) as caught:
        await collect(client, make_request("bad", BREAK))
    assert caught.value.code == "internal_error"
    with pytest.raises(RequestRejectedError):
        await other
    await until(lambda: client.state == "failed")
    with pytest.raises(EngineDeadError):
        await collect(client, make_request("late"))


async def test_shutdown_gives_open_requests_time_then_aborts() -> None:
    client = InprocClient(FakeCore(Script(step_seconds=0.001)))
    with pytest.raises(EngineDeadError):
        await collect(client, make_request("early"))
    await client.start()
    short = asyncio.create_task(collect(client, make_request("short", max_tokens=20)))
    endless = asyncio.create_task(outputs_of(client, make_request("endless", max_tokens=10**9)))
    await until(lambda: client.stats.num_running == 2)
    await asyncio.gather(client.shutdown(timeout=0.5), client.shutdown())
    assert len(await short) == 20
    assert (await endless)[-1].finish_reason == "abort"
    assert client.state == "stopped"
    with pytest.raises(EngineDeadError):
        await collect(client, make_request("late"))
