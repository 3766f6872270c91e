"""The client of an engine in a separate process: starts it, watches it, and restarts it if it dies.

The state goes loading → ready → restarting → ready …, and ends with failed or stopped. Requests that were
open when an engine died fail and are not run again: the next engine knows nothing of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from engine.client import EngineDeadError, EngineState
from engine.config import EngineConfig, LogFormat
from engine.host.programs import module_command
from engine.ipc.child import EngineChild
from engine.ipc.streams import StreamingClient
from engine.ipc.wire import WireError
from engine.messages import (
    ClientMessage,
    EngineInfo,
    EngineMessage,
    EngineStats,
    LoadFailed,
    Shutdown,
    StepReport,
)

HANG_SECONDS = 120.0
"""How long the engine may be silent before it counts as hung, unless it is computing on a CPU, where a single
step with a large picture or prompt may take minutes. An idle engine sends a heartbeat every second; while
loading there is no limit.
"""
LONGEST_STEP_SECONDS = 1800.0
"""How long a computing engine may be silent before it is replaced after all."""

LAST_STEP_SECONDS = 4.0
"""How long an engine that is shutting down may take to finish its step and end its requests; after that they
are failed on its behalf.
"""
SHUTDOWN_SECONDS = 4.0
"""How long the engine may then take to exit by itself before it is terminated."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How often and how quickly to restart an engine.

    The seconds between death and restart double from ``first_delay`` on, until an engine has run for
    ``healthy_seconds``. After ``max_failed_loads`` in a row the client gives up.
    """

    first_delay: float = 0.5
    max_delay: float = 30.0
    healthy_seconds: float = 60.0
    max_failed_loads: int = 5


@dataclass(slots=True)
class Run:
    """The record of one engine process."""

    ready_at: float | None = None
    ended_at: float = 0.0
    reason: str = ""
    load_failed: bool = False
    was_refused: bool = False
    """Whether the system could not start a process, though it could start one before."""


class Backoff:
    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths = 0
        self._failed_loads = 0

    def after(self, run: Run) -> float | None:
        """Return the seconds to wait before the next start; ``None`` to give up."""
        if run.ready_at is None:
            self._failed_loads += not run.was_refused
            if self._failed_loads >= self._policy.max_failed_loads:
                return None
        else:
            self._failed_loads = 0
            if run.ended_at - run.ready_at >= self._policy.healthy_seconds:
                self._deaths = 0
        self._deaths += 1
        doublings = min(self._deaths - 1, 30)
        return min(self._policy.max_delay, self._policy.first_delay * float(2**doublings))


class ProcessClient(StreamingClient):
    """``EngineClient`` for ``python -m engine``, or for another ``command`` with the same protocol."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        command: Sequence[str] | None = None,
        hang_timeout: float = HANG_SECONDS,
        restart: RestartPolicy = RestartPolicy(),
        log_format: LogFormat = "auto",
    ) -> None:
        super().__init__()
        self._config = config
        self._command = module_command("engine") if command is None else command
        self._hang_timeout = hang_timeout
        self._log_format = log_format
        self._backoff = Backoff(restart)
        self._failure = ""
        self._changed = asyncio.Event()
        self._child: EngineChild | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the engine, while there is one."""
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        if self._state == "stopped":
            raise RuntimeError("an engine client that was shut down cannot be started again")
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise())

    async def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        async with asyncio.timeout(timeout):
            while self._state != "ready" or self._info is None:
                if self._state in ("failed", "stopped"):
                    raise EngineDeadError(self._failure or f"the engine is {self._state}")
                await self._changed.wait()
        return self._info

    async def _stop(self, timeout: float) -> None:
        was_ready = self._state == "ready"
        self._set_state("stopped")
        if self._supervisor is None:
            return
        if was_ready:
            await self._streams.wait_empty(timeout)
            with contextlib.suppress(EngineDeadError):
                self._send(Shutdown())
                await asyncio.wait({self._supervisor}, timeout=LAST_STEP_SECONDS)
                self._streams.fail_all("the engine did not end its requests in time")
                await asyncio.wait({self._supervisor}, timeout=SHUTDOWN_SECONDS)
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})

    def _send(self, message: ClientMessage) -> None:
        if self._child is None:
            raise EngineDeadError(f"the engine is {self._state}")
        self._child.send(message)

    def _set_state(self, state: EngineState) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()

    async def _supervise(self) -> None:
        """Run one engine after another, until stopped or restarting is pointless."""
        while True:
            run = Run()
            try:
                await self._run_engine(run)
            except Exception as error:  # a bug here costs the engine and leaves no client waiting
                log.exception("following the engine failed")
                run.reason = f"following the engine failed: {error}"
            if self._state == "stopped":
                return
            delay = self._backoff.after(run)
            # A model that was loaded before may load again, once memory is free or a disk is back.
            if delay is None or (run.load_failed and self._info is None):
                self._give_up(run.reason)
                return
            log.error("%s; restarting in %.1f s", run.reason, delay)
            await asyncio.sleep(delay)

    def _give_up(self, reason: str) -> None:
        log.error("giving up: %s", reason)
        self._failure = reason
        self._set_state("failed")

    async def _run_engine(self, run: Run) -> None:
        """Run one engine process from start to end. When this ends, nothing of it is left."""
        try:
            child = await EngineChild.start(self._command, self._config, self._log_format)
        except OSError as error:
            run.reason = f"the engine process could not be started: {error}"
            run.was_refused = self._info is not None
            return
        self._child = child
        try:
            run.reason = await self._follow(child, run)
        finally:
            run.ended_at = asyncio.get_running_loop().time()
            self._child = None
            if self._state == "ready":
                self._set_state("restarting")
            try:
                self._streams.fail_all("the engine process ended")
                self._on_report(StepReport(outputs=[], stats=EngineStats()))  # reset the statistics
            finally:
                await child.close()

    async def _next(self, child: EngineChild, *, ready: bool) -> EngineMessage | None:
        """Return the next message, or ``None`` when the process has ended. Raises ``TimeoutError`` with the
        seconds of silence if it hangs.
        """
        if not ready:
            return await child.receive(None)
        on_cpu = self._info is not None and self._info.device == "cpu"
        part, silent, before = self._hang_timeout / 2, 0.0, None
        while True:
            try:
                return await child.receive(part)
            except TimeoutError:
                silent, spent = silent + part, child.cpu_seconds() if on_cpu else None
                # A hung process uses next to none. Who cannot tell must not end a long step.
                computes = on_cpu and (spent is None or before is None or spent - before > part / 10)
                before = spent
                if silent >= self._hang_timeout and (not computes or silent >= LONGEST_STEP_SECONDS):
                    raise TimeoutError(f"{silent:.1f}") from None
                if silent == self._hang_timeout:
                    log.warning(
                        "a single step has taken the engine %.0f s so far; smaller pictures, fewer rows "
                        "(--max-num-batched-tokens) or a smaller model keep steps short",
                        silent,
                    )

    async def _follow(self, child: EngineChild, run: Run) -> str:
        """Handle the engine's messages until it ends or can no longer be trusted; return the reason."""
        while True:
            try:
                message = await self._next(child, ready=run.ready_at is not None)
            except TimeoutError as error:
                return f"the engine process was silent for {error} s"
            except WireError as error:
                return f"the engine process sent an invalid message: {error}"
            match message:
                case None:
                    return f"the engine process ended with code {child.returncode}"
                case LoadFailed():
                    run.load_failed = True
                    return f"the model cannot be served: {message.message}"
                case StepReport():
                    self._on_report(message)
                case EngineInfo():
                    run.ready_at = asyncio.get_running_loop().time()
                    self._info = message
                    if self._state != "stopped":
                        self._set_state("ready")
                        log.info(
                            "engine ready: %s on %s in %.1f s",
                            message.model,
                            message.device,
                            message.load_seconds,
                        )
