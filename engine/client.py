"""The engine client interface: the only boundary between front ends and engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Literal, Protocol

from engine.messages import EngineInfo, EngineStats, GenerateRequest, RejectCode, RequestOutput, StepReport

EngineState = Literal["loading", "ready", "restarting", "failed", "stopped"]
ReportListener = Callable[[StepReport], None]


class EngineDeadError(RuntimeError):
    """The engine is not running, or it died while the request was open."""


class RequestRejectedError(ValueError):
    """The engine refused or failed this request; others are not affected. ``code`` says why."""

    def __init__(self, code: RejectCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineClient(Protocol):
    """A running engine; ``engine.ipc.process`` has one in a process of its own."""

    @property
    def state(self) -> EngineState: ...

    @property
    def info(self) -> EngineInfo | None:
        """The description that the engine sent when it became ready; ``None`` before."""

    @property
    def stats(self) -> EngineStats:
        """The latest statistics received."""

    def add_listener(self, listener: ReportListener) -> None:
        """Call ``listener`` with every step report (for metrics). It must not block."""

    async def start(self) -> None:
        """Start loading, unless already started. Returns immediately; see ``wait_ready``."""

    async def wait_ready(self, timeout: float | None = None) -> EngineInfo:
        """Wait until the model is loaded.

        Raises ``EngineDeadError`` if it cannot be loaded, ``TimeoutError`` after ``timeout`` seconds.
        """

    def generate(self, request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        """Yield the outputs of one request, the last with a finish reason other than ``error``.

        Closing the generator early aborts the request. Raises ``RequestRejectedError`` if the engine refuses
        or fails the request, ``EngineDeadError`` if the engine is not running or dies.
        """

    def when_ended(self, request_ids: Iterable[str], callback: Callable[[], None]) -> None:
        """Call ``callback`` once the engine has ended these requests, whose generators are closed.

        Until then they still take up memory in the engine, and their messages may be in flight. If they have
        already ended, ``callback`` is called immediately.
        """

    async def shutdown(self, timeout: float = 0.0) -> None:
        """Stop accepting requests, give open ones ``timeout`` seconds to finish, then end the engine."""
