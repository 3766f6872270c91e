"""Admission control: counts open answers and rejects more than the engine and its queue can hold.

Knows counts and states only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.client import EngineClient
from server.deadline import until
from server.errors import (
    ApiError,
    engine_unavailable,
    pictures_full,
    queue_full,
    request_timeout,
    shutting_down,
    too_many_tokens,
)
from server.metrics import Metrics


class Admission:
    """Counts open answers, the bytes of their prepared pictures, and the tokens of prompts that wait for the
    first token of their answer.

    ``admit`` and ``release`` come in pairs, see ``Ticket``.
    """

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        *,
        max_open: int,
        max_waiting_tokens: int,
        max_picture_bytes: int,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._max_open = max_open
        self._max_waiting_tokens = max_waiting_tokens
        self._max_picture_bytes = max_picture_bytes
        self._num_open = 0
        self._num_waiting_tokens = 0
        self._picture_bytes = 0
        self._closed = False
        self._preparing: set[asyncio.Timeout] = set()
        self._abandoned = False

    @property
    def num_open(self) -> int:
        return self._num_open

    @property
    def num_waiting_tokens(self) -> int:
        return self._num_waiting_tokens

    def close(self) -> None:
        """Reject all further requests."""
        self._closed = True

    def abandon(self) -> None:
        """Give up requests that are still being prepared, and any that are to be."""
        self._abandoned = True
        for limit in self._preparing:
            if not limit.expired():  # it may have been its turn
                limit.reschedule(0)

    @asynccontextmanager
    async def preparing(self, deadline: float | None) -> AsyncIterator[None]:
        """Cancel the body at ``deadline`` or when it is abandoned, raising ``ApiError``; see ``until``."""
        async with until(0 if self._abandoned else deadline, self._expired) as limit:
            self._preparing.add(limit)
            try:
                yield
            finally:
                self._preparing.discard(limit)

    def admit(self, num_answers: int, *, needs_engine: bool = True) -> Ticket:
        """Admit a request or raise ``ApiError``. An idle server admits any number of answers."""
        self.check(needs_engine=needs_engine)
        if self._num_open and self._num_open + num_answers > self._max_open:
            raise self._rejection("queue_full", queue_full())
        self._num_open += num_answers
        return Ticket(self, num_answers)

    def check(self, *, needs_engine: bool = True) -> None:
        """Raise ``ApiError`` if requests cannot be answered now. Worth repeating after a wait."""
        if self._closed:
            raise self._rejection("shutting_down", shutting_down())
        if needs_engine and self._client.state != "ready":
            raise self._rejection("engine_unavailable", engine_unavailable())

    def wait(self, prompt_lens: list[int]) -> None:
        """Count waiting prompts or raise ``ApiError``. An empty queue accepts one prompt of any length."""
        num_tokens = sum(prompt_lens)
        if len(prompt_lens) > 1 and num_tokens > self._max_waiting_tokens:
            raise too_many_tokens(num_tokens, len(prompt_lens), self._max_waiting_tokens)
        if self._num_waiting_tokens and self._num_waiting_tokens + num_tokens > self._max_waiting_tokens:
            raise self._rejection("queued_tokens", queue_full())
        self._num_waiting_tokens += num_tokens

    def hold(self, picture_bytes: int) -> None:
        """Count picture memory or raise ``ApiError``. While none is in use, any amount is accepted."""
        total = self._picture_bytes + picture_bytes
        if picture_bytes and self._picture_bytes and total > self._max_picture_bytes:
            raise self._rejection("picture_memory", pictures_full())
        self._picture_bytes += picture_bytes

    def started(self, num_tokens: int) -> None:
        self._num_waiting_tokens -= num_tokens
        assert self._num_waiting_tokens >= 0

    def release(self, num_answers: int, picture_bytes: int) -> None:
        self._num_open -= num_answers
        self._picture_bytes -= picture_bytes
        assert min(self._num_open, self._picture_bytes) >= 0

    def _expired(self) -> ApiError:
        return shutting_down() if self._abandoned else request_timeout()

    def _rejection(self, reason: str, error: ApiError) -> ApiError:
        self._metrics.on_rejected(reason)
        return error


class Ticket:
    """The right to generate. Releasing it again has no effect."""

    def __init__(self, admission: Admission, num_answers: int) -> None:
        self._admission = admission
        self._num_answers = num_answers
        self._waiting: list[int] = []
        self._picture_bytes = 0

    def wait(self, prompt_lens: list[int]) -> None:
        """Count the tokens of all prompts as waiting. Raises ``ApiError`` if there are too many."""
        self._admission.wait(prompt_lens)
        self._waiting = list(prompt_lens)

    def hold(self, picture_bytes: int) -> None:
        """Count prepared pictures until the release. Raises ``ApiError`` if they take too much memory."""
        self._admission.hold(picture_bytes)
        self._picture_bytes = picture_bytes

    def started(self, prompt: int) -> None:
        """Note that an answer to prompt number ``prompt`` has begun. Further calls for it have no effect."""
        self._admission.started(self._waiting[prompt])
        self._waiting[prompt] = 0

    def release(self) -> None:
        self._admission.release(self._num_answers, self._picture_bytes)
        self._num_answers = self._picture_bytes = 0
        for prompt in range(len(self._waiting)):
            self.started(prompt)
