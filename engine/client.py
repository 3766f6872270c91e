"""The one seam between front ends and engines: what a client of an engine can do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Literal, Protocol

from engine.messages import EngineInfo, EngineStats, GenerateRequest, RejectCode, RequestOutput, StepReport

EngineState = Literal["loading", "ready", "restarting", "failed", "stopped"]
ReportListener = Callable[[StepReport], None]


class EngineDeadError(RuntimeError):
    """The engine is not there, or died while the request was open."""


class RequestRejectedError(ValueError):
    """The engine refuses this one request; others go on. ``code`` says why."""

    def __init__(self, code: RejectCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineClient(Protocol):
    """A running engine, in this process (``engine.inproc``) or in another one (``engine.ipc.process``)."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None:
        """What the engine said of itself when it became ready; ``None`` before."""

    @property
    def stats(self) -> EngineStats:
        """The newest statistics received."""

    def add_listener(self, listener: ReportListener) -> None:
        """Call ``listener`` with every step report (for metrics). It must not block."""

    async def start(self) -> None:
        """Begin loading, unless that was done before. Returns at once; see ``wait_ready``."""

    async def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        """Wait for the model. Raises ``EngineDeadError`` if it cannot be loaded, ``TimeoutError``."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request, the last with a finish reason other than ``error``.

        Closing the generator early aborts the request. Raises ``RequestRejectedError`` where the engine
        refuses it, ``EngineDeadError`` where the engine is not there or dies.
        """

    def when_ended(self, request_ids: Iterable[str], callback: Callable[[], None]) -> None:
        """Call back once the engine has ended these requests, whose generators are closed: until then they
        still take its memory, and what they sent may be on its way. At once where it has.
        """

    async def shutdown(self, timeout: float = 0.0) -> None:
        """Stop taking requests, give open ones ``timeout`` seconds, then end the engine."""
