"""The interface between the engine loop and its core. The core knows no transport, threads or clients."""

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
        """Whether a step would advance or end any request; unreported rejections and aborts count too."""

    def add(self, request: GenerateRequest) -> None:
        """Add a request. One that cannot run is rejected in the outputs of the next step, not by raising."""

    def abort(self, request_ids: list[str]) -> None:
        """End these open requests with finish reason ``abort`` in the outputs of the next step.

        Repeating the call before that step has no effect.
        """

    def step(self) -> StepReport:
        """Run one step. Raises only if the engine is broken for good."""


CoreLoader = Callable[[EngineConfig], Core]
"""Raises ``engine.errors.ModelLoadError`` if the model cannot be served."""
