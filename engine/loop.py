"""The engine loop: drives one core and guarantees that every request ends exactly once.

The same loop runs in process (``run_to_completion``) and behind sockets (``engine.ipc.worker``). It knows
nothing of threads or transport.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from engine.core_protocol import Core
from engine.ipc.tensors_once import TensorsKept
from engine.messages import (
    AbortRequest,
    ClientMessage,
    EngineStats,
    FinishReason,
    ForgetPictures,
    GenerateRequest,
    RequestError,
    RequestOutput,
    Shutdown,
    StepReport,
)

HEARTBEAT_SECONDS = 1.0

MAX_OPEN = 128
"""The default number of requests that an offline run keeps open at a time."""

INTAKE_SECONDS = 0.005
"""Time for new requests between two steps: a flood of them must not delay the running ones."""

# A fixed text, since an exception's message may contain addresses and paths. The log has the traceback.
ENGINE_BROKE = RequestError(code="internal_error", message="The engine failed while this request was open.")
UNREADABLE = RequestError(code="invalid_request", message="The engine could not read this request.")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A message that the transport could not decode, with the id of its request if it could read that."""

    request_id: str | None


Receive = Callable[[float], Iterable[ClientMessage | Unreadable]]
"""Returns the messages that have arrived; if there are none, waits for up to the given seconds (0: not at
all). The loop may stop reading early: messages not read must be returned by the next call."""

log = logging.getLogger(__name__)


class EngineLoop:
    """Runs a core and tracks its open requests."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._open: dict[str, None] = {}  # a set that keeps the order of arrival
        self._arrived: dict[str, GenerateRequest] = {}  # open, not yet in the core
        # The same requests as a heap of (priority, number, id). Aborted ones stay until they are popped.
        self._turns: list[tuple[int, int, str]] = []
        self._numbers = itertools.count()
        self._tensors = TensorsKept()
        # Final outputs of requests that the core never sees, for the next report.
        self._refusals: list[RequestOutput] = []

    @property
    def num_open(self) -> int:
        return len(self._open)

    def submit(self, request: GenerateRequest) -> None:
        if request.request_id in self._open:
            raise ValueError(f"request id {request.request_id!r} is in use")
        self._open[request.request_id] = None
        self._core.add(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Abort these requests. Ids that are unknown or have ended are ignored."""
        known = []
        for request_id in request_ids:
            if self._arrived.pop(request_id, None) is not None:
                del self._open[request_id]
                self._refusals.append(_ended(request_id, "abort"))
            elif request_id in self._open:
                known.append(request_id)
        if known:
            self._core.abort(known)

    def step(self) -> StepReport:
        """Run one step of the core; return an empty report if there is nothing to do."""
        if self._core.has_work:
            report = self._core.step()
        elif not self._open:
            report = StepReport(outputs=[], stats=self._core.stats)
        else:  # a core that forgets a request would leave its client waiting forever
            raise RuntimeError(f"the core is idle while {self.num_open} requests are open")
        for output in report.outputs:
            if output.finish_reason is not None:
                self._open.pop(output.request_id, None)
        refusals, self._refusals = self._refusals, []
        return self._counted(_extended(report, refusals))

    def abort_all(self) -> StepReport:
        """End every open request. The loop must not be used afterwards: the core may be in any state."""
        self.abort(list(self._open))
        report = self.step()
        return _extended(report, list(self._end_all("abort")))

    def run(self, receive: Receive, emit: Callable[[StepReport], None]) -> None:
        """Serve until a ``Shutdown`` arrives. If the core breaks, fail every open request and raise.

        Emits one report per step; while idle, an empty one every ``HEARTBEAT_SECONDS``.
        """
        try:
            while self._take(receive(0.0 if self._busy else HEARTBEAT_SECONDS)):
                emit(self.step())
            emit(self.abort_all())
        except Exception:
            # A broken core is not even asked for statistics.
            emit(StepReport(outputs=list(self._end_all("error", ENGINE_BROKE)), stats=EngineStats()))
            raise

    def _counted(self, report: StepReport) -> StepReport:
        """Return ``report`` with requests that are not yet in the core counted as waiting."""
        if not self._arrived:
            return report
        waiting = report.stats.num_waiting + len(self._arrived)
        stats = msgspec.structs.replace(report.stats, num_waiting=waiting)
        return msgspec.structs.replace(report, stats=stats)

    @property
    def _busy(self) -> bool:
        return bool(self._arrived) or self._core.has_work

    def _take(self, messages: Iterable[ClientMessage | Unreadable]) -> bool:
        """Process ``messages``; return ``False`` after a ``Shutdown``.

        Reading a message is quick, adding a request to the core is not. Requests are therefore queued first,
        so that an abort takes effect before earlier requests have been added.
        """
        deadline: float | None = None
        for message in messages:
            match message:
                case Shutdown():
                    return False
                case AbortRequest(request_ids=request_ids):
                    self.abort(request_ids)
                case GenerateRequest(request_id=request_id) if request_id in self._open:
                    # A reply would reach the request that owns the id. Our clients never send this.
                    log.error("dropped a second request with the id %r", request_id)
                case ForgetPictures(hashes=hashes):
                    self._tensors.forget(hashes)
                case GenerateRequest():
                    self._arrive(message)
                case Unreadable(request_id=str(request_id)) if request_id not in self._open:
                    self._refusals.append(_ended(request_id, "error", UNREADABLE))
            # The deadline starts with the first message, which the loop may have waited for. Messages that
            # are not read stay in the transport.
            deadline = deadline or time.monotonic() + INTAKE_SECONDS
            if self._busy and time.monotonic() >= deadline:
                break
        self._add_arrived(deadline or time.monotonic() + INTAKE_SECONDS)
        return True

    def _arrive(self, message: GenerateRequest) -> None:
        request_id = message.request_id
        try:
            request = self._tensors.complete(message)
        except KeyError:  # the message that carried a picture's tensors could not be read
            self._refusals.append(_ended(request_id, "error", UNREADABLE))
            return
        self._open[request_id] = None
        self._arrived[request_id] = msgspec.structs.replace(request, arrived_at=time.monotonic())
        heapq.heappush(self._turns, (request.priority, next(self._numbers), request_id))

    def _add_arrived(self, deadline: float) -> None:
        """Add at least one request to the core, and more until the deadline or while the core is idle."""
        while self._turns:
            _, _, request_id = heapq.heappop(self._turns)
            request = self._arrived.pop(request_id, None)
            if request is None:
                continue
            self._core.add(request)
            if self._core.has_work and time.monotonic() >= deadline:
                break

    def _end_all(self, reason: FinishReason, error: RequestError | None = None) -> Iterator[RequestOutput]:
        while self._open:
            request_id, _ = self._open.popitem()
            yield _ended(request_id, reason, error)


def run_to_completion(
    core: Core, requests: Iterable[GenerateRequest], *, max_open: int = MAX_OPEN
) -> Iterator[RequestOutput]:
    """Yield the outputs of all ``requests`` as they come, without threads. The core is always left empty.

    Requests are consumed lazily: at most ``max_open`` are open at any time. A refused request ends with an
    output whose finish reason is ``error``; a broken engine raises.
    """
    if max_open < 1:
        raise ValueError("max_open must be at least 1")
    if core.has_work:
        raise RuntimeError("the core is busy with other requests")
    loop = EngineLoop(core)
    coming = iter(requests)
    try:
        while True:
            for request in itertools.islice(coming, max_open - loop.num_open):
                loop.submit(request)
            if not loop.num_open:
                return
            yield from loop.step().outputs
    except BaseException:  # requests left behind would run, and produce outputs, during the next run
        try:
            loop.abort_all()
        except Exception:
            log.exception("the core could not be cleared")
        raise


def _ended(request_id: str, reason: FinishReason, error: RequestError | None = None) -> RequestOutput:
    return RequestOutput(request_id=request_id, token_ids=[], finish_reason=reason, error=error)


def _extended(report: StepReport, outputs: list[RequestOutput]) -> StepReport:
    return msgspec.structs.replace(report, outputs=report.outputs + outputs) if outputs else report
