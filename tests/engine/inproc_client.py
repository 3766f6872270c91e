"""The client of an engine in this process: no sockets, and a core that is already loaded."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Iterator

from engine.client import EngineDeadError
from engine.core_protocol import Core
from engine.ipc.streams import StreamingClient
from engine.loop import EngineLoop
from engine.messages import ClientMessage, EngineInfo, Shutdown, StepReport

log = logging.getLogger(__name__)


class InprocClient(StreamingClient):
    """``EngineClient`` for a core in this process, driven by a dedicated thread.

    A step that hangs cannot be interrupted: ``shutdown`` waits for it.
    """

    def __init__(self, core: Core) -> None:
        super().__init__()
        self._core = core
        self._inbox: queue.SimpleQueue[ClientMessage] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        if self._state == "stopped":
            raise RuntimeError("an engine client that was shut down cannot be started again")
        if self._thread is not None:
            return
        self._info = self._core.info
        self._state = "ready"
        self._thread = threading.Thread(
            target=self._run, args=(asyncio.get_running_loop(),), name="engine", daemon=True
        )
        self._thread.start()

    async def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        if self._state != "ready" or self._info is None:
            raise EngineDeadError(f"the engine is {self._state}")
        return self._info

    async def _stop(self, timeout: float) -> None:
        self._state = "stopped"
        if self._thread is not None:
            await self._streams.wait_empty(timeout)
            self._send(Shutdown())
            await asyncio.to_thread(self._thread.join)

    def _send(self, message: ClientMessage) -> None:
        self._inbox.put(message)

    def _receive(self, timeout: float) -> Iterator[ClientMessage]:
        try:
            yield self._inbox.get(timeout > 0, timeout)
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def _run(self, event_loop: asyncio.AbstractEventLoop) -> None:
        """Body of the engine thread."""

        def emit(report: StepReport) -> None:
            event_loop.call_soon_threadsafe(self._on_report, report)

        try:
            EngineLoop(self._core).run(self._receive, emit)
        except Exception:
            log.exception("the engine broke")
        event_loop.call_soon_threadsafe(self._on_end)

    def _on_end(self) -> None:
        if self._state != "stopped":
            self._state = "failed"
        self._streams.fail_all(f"the engine is {self._state}")
