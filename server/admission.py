"""Who is let in: open answers are counted, and more than the engine and its queue hold are refused.

Knows counts and states only.
"""

from __future__ import annotations

from engine.client import EngineClient
from server.errors import ApiError, engine_unavailable, queue_full, shutting_down
from server.metrics import Metrics


class Admission:
    """Counts open choices. ``admit`` and ``release`` come in pairs, see ``Ticket``."""

    def __init__(self, client: EngineClient, metrics: Metrics, max_open: int) -> None:
        self._client = client
        self._metrics = metrics
        self._max_open = max_open
        self._num_open = 0
        self._closed = False

    @property
    def num_open(self) -> int:
        return self._num_open

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    def admit(self, num_choices: int) -> Ticket:
        """An idle server takes any request, however many choices it asks for."""
        self.check()
        if self._num_open and self._num_open + num_choices > self._max_open:
            raise self._rejection("queue_full", queue_full())
        self._num_open += num_choices
        return Ticket(self, num_choices)

    def check(self) -> None:
        """Raise unless the engine is there to answer. Worth repeating after a wait."""
        if self._closed:
            raise self._rejection("shutting_down", shutting_down())
        if self._client.state != "ready":
            raise self._rejection("engine_unavailable", engine_unavailable())

    def release(self, num_choices: int) -> None:
        self._num_open -= num_choices
        assert self._num_open >= 0

    def _rejection(self, reason: str, error: ApiError) -> ApiError:
        self._metrics.on_rejected(reason)
        return error


class Ticket:
    """The right to generate; giving it back twice counts once."""

    def __init__(self, admission: Admission, num_choices: int) -> None:
        self._admission = admission
        self._num_choices = num_choices

    def release(self) -> None:
        self._admission.release(self._num_choices)
        self._num_choices = 0
