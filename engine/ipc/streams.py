"""The part of a client that does not depend on where the engine runs: open requests, statistics, listeners.

Belongs to one event loop. An id stays open until the engine has ended it, even if nobody listens any more: a
new request with that id could otherwise receive the last outputs of the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

from engine.client import EngineDeadError, EngineState, ReportListener, RequestRejectedError
from engine.ipc.tensors_once import TensorsSent
from engine.messages import (
    AbortRequest,
    ClientMessage,
    EngineInfo,
    EngineStats,
    ForgetPictures,
    GenerateRequest,
    RequestError,
    RequestOutput,
    StepReport,
)

log = logging.getLogger(__name__)


class _Died:
    """Queue item that marks the end of the engine; every stream raises its own exception."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


@dataclass(slots=True)
class _Goodbye:
    """A callback for a group of requests, and how many of them the engine has yet to end."""

    num_left: int
    callback: Callable[[], None]


class RequestStreams:
    """One queue for each request that has a listener.

    ``abort`` is called with the id of a request whose listener left early, ``ended`` with the id of every
    request that no longer has a listener.
    """

    def __init__(self, abort: Callable[[str], None], ended: Callable[[str], None]) -> None:
        self._abort, self._ended = abort, ended
        self._queues: dict[str, asyncio.Queue[RequestOutput | _Died]] = {}
        self._leaving: set[str] = set()  # aborted by us, not ended by the engine yet
        self._goodbyes: dict[str, _Goodbye] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    async def stream(
        self, request: GenerateRequest, submit: Callable[[GenerateRequest], None]
    ) -> AsyncGenerator[RequestOutput, None]:
        """``EngineClient.generate``: submits the request, then yields its outputs."""
        request_id = request.request_id
        if request_id in self._queues or request_id in self._leaving:
            raise ValueError(f"request id {request_id!r} is in use")
        submit(request)  # if this raises, the engine has not seen the request
        queue: asyncio.Queue[RequestOutput | _Died] = asyncio.Queue()
        self._queues[request_id] = queue
        self._empty.clear()
        try:
            while True:
                item = await queue.get()
                if isinstance(item, _Died):
                    raise EngineDeadError(item.reason)
                if item.finish_reason == "error":
                    error = item.error or RequestError(code="internal_error", message="unknown error")
                    raise RequestRejectedError(error.code, error.message)
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            # Ending a request removes its queue. If it is still there, the engine is still working on it.
            if self._queues.get(request_id) is queue:
                self._leaving.add(request_id)
                self._drop_queue(request_id)
                self._abort(request_id)

    def dispatch(self, report: StepReport) -> None:
        """Distribute the outputs of one step. Those of requests without a listener are dropped."""
        for output in report.outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)
            if output.finish_reason is not None:
                self._leave(output.request_id)
                self._drop_queue(output.request_id)

    def fail_all(self, reason: str) -> None:
        """Make every open request raise ``EngineDeadError``, because the engine is gone."""
        for request_id in list(self._leaving):
            self._leave(request_id)
        for request_id, queue in list(self._queues.items()):
            queue.put_nowait(_Died(reason))
            self._drop_queue(request_id)

    def when_ended(self, request_ids: Iterable[str], callback: Callable[[], None]) -> None:
        """Call ``callback`` once the engine has ended those of the requests that have no listener."""
        left = self._leaving.intersection(request_ids)
        if left:
            self._goodbyes |= dict.fromkeys(left, _Goodbye(len(left), callback))
        else:
            callback()

    async def wait_empty(self, timeout: float) -> None:
        """Wait until no request has a listener any more, for up to ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout)

    def _leave(self, request_id: str) -> None:
        self._leaving.discard(request_id)
        goodbye = self._goodbyes.pop(request_id, None)
        if goodbye is not None:
            goodbye.num_left -= 1
            if not goodbye.num_left:
                goodbye.callback()

    def _drop_queue(self, request_id: str) -> None:
        if self._queues.pop(request_id, None) is not None:
            self._ended(request_id)
        if not self._queues:
            self._empty.set()


class StreamingClient(ABC):
    """Base of ``EngineClient`` implementations; subclasses start an engine and exchange messages with it."""

    def __init__(self) -> None:
        self._state: EngineState = "loading"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._listeners: list[ReportListener] = []
        self._streams = RequestStreams(self._abort, self._forget)
        self._tensors = TensorsSent()
        self._stopping: asyncio.Task[None] | None = None

    @abstractmethod
    async def _stop(self, timeout: float) -> None:
        """Set the state to ``stopped``, give open requests ``timeout`` seconds, then end the engine."""

    @abstractmethod
    def _send(self, message: ClientMessage) -> None:
        """Send ``message`` to the engine without waiting. Raises ``EngineDeadError`` if there is none."""

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def add_listener(self, listener: ReportListener) -> None:
        self._listeners.append(listener)

    def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        return self._streams.stream(request, self._submit)

    def when_ended(self, request_ids: Iterable[str], callback: Callable[[], None]) -> None:
        self._streams.when_ended(request_ids, callback)

    async def shutdown(self, timeout: float = 0.0) -> None:
        """See ``EngineClient.shutdown``. A second call waits for the first."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(timeout))
        await asyncio.shield(self._stopping)

    def _submit(self, request: GenerateRequest) -> None:
        if self._state != "ready":
            raise EngineDeadError(f"the engine is {self._state}")
        try:
            self._send(self._tensors.leave_out(request))
        except BaseException:
            self._tensors.release(request.request_id)
            raise

    def _abort(self, request_id: str) -> None:
        with contextlib.suppress(EngineDeadError):  # the request has ended with its engine
            self._send(AbortRequest(request_ids=[request_id]))

    def _forget(self, request_id: str) -> None:
        if hashes := self._tensors.release(request_id):
            with contextlib.suppress(EngineDeadError):  # the tensors are gone with the engine
                self._send(ForgetPictures(hashes=hashes))

    def _on_report(self, report: StepReport) -> None:
        self._stats = report.stats
        self._streams.dispatch(report)
        for listener in self._listeners:
            try:
                listener(report)
            except Exception:
                log.exception("a listener failed")
