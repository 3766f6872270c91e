"""What the loop around an engine needs of its core. The core knows no transport, threads or clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine.config import EngineConfig
from engine.messages import EngineInfo, EngineStats, GenerateRequest, StepReport


class Core(Protocol):
    """A loaded model with its scheduler, driven from one thread."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def stats(self) -> EngineStats: ...

    @property
    def has_work(self) -> bool:
        """Whether a step would move or end any request; rejections and aborts not yet reported count."""

    def add(self, request: GenerateRequest) -> None:
        """Take a request. One that cannot run is rejected in the outputs of the next step, not by raising."""

    def abort(self, request_ids: list[str]) -> None:
        """End these open requests with finish reason ``abort`` in the outputs of the next step.

        Asking twice before that step changes nothing.
        """

    def step(self) -> StepReport:
        """Run one step. Raises only if the engine is broken for good."""


CoreLoader = Callable[[EngineConfig], Core]
"""Raises ``engine.errors.ModelLoadError`` where the model cannot be served."""
