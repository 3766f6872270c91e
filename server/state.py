"""State shared by the routes of an app. Built by ``server.app``, found at ``request.app.state.server``."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from engine.client import EngineClient
from server.admission import Admission
from server.errors import model_not_found
from server.metrics import Metrics
from server.prompts import PromptBuilder
from server.sampling import SamplingDefaults
from server.settings import ServeSettings

if TYPE_CHECKING:
    from processing.processor import Processor


@dataclass(frozen=True, slots=True)
class ServerState:
    settings: ServeSettings
    client: EngineClient
    processor: Processor
    prompts: PromptBuilder
    defaults: SamplingDefaults
    admission: Admission
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))

    def served_name(self, asked: str | None) -> str:
        """Return the model name for the answer. Raises ``ApiError`` if ``asked`` is not served."""
        names = self.settings.names
        if asked is None:
            return names[0]
        if asked not in names:
            raise model_not_found(asked)
        return asked

    @property
    def max_model_len(self) -> int | None:
        info = self.client.info
        return info.max_model_len if info is not None else self.settings.max_model_len


def server_state(request: Request) -> ServerState:
    return cast(ServerState, request.app.state.server)


State = Annotated[ServerState, Depends(server_state)]
