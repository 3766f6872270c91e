"""Merges several choices into one stream that ends exactly once, in tasks of their own.

The tasks are independent of the response: when a client disconnects, the framework repeatedly cancels
whatever it awaits, while the engine's iterators still need a moment to clean up. ``close`` allows for that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from server.deadline import until
from server.errors import ApiError, too_many_token_details, too_much_unread

T = TypeVar("T")

MAX_UNREAD = 200_000
"""Maximum pieces of a streamed answer, plus the token details in them, that may wait unread: tens of MB."""

MAX_KEPT = 1_000_000
"""Maximum token details in an answer that is sent as a whole: about 300 MB while it is written."""

_PAUSE_SECONDS = 0.01  # other tasks get to run at least this often


class Generation(Generic[T]):
    """Starts immediately. Iterate over it once; always call ``close``. ``on_end`` runs after the last task.

    At the ``deadline``, in the event loop's time, open choices end with an error. So do they when too much is
    held: unread items and, if the reader ``keeps_all``, the contents of those read. An item counts as one,
    its contents by its ``weight``.
    """

    def __init__(
        self,
        choices: Sequence[AsyncGenerator[T, None]],
        on_end: Callable[[], None],
        deadline: float | None = None,
        *,
        weight: Callable[[T], int],
        keeps_all: bool,
    ) -> None:
        self._deadline, self._weight, self._keeps_all = deadline, weight, keeps_all
        self._held = 0
        self._pause_at = 0.0
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._ahead: list[T] = []
        self._num_open = len(choices)
        self._tasks = [asyncio.create_task(self._pump(choice)) for choice in choices]
        self._all_done = asyncio.gather(*self._tasks, return_exceptions=True)
        self._all_done.add_done_callback(lambda _: on_end())

    async def wait_first(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for the first item. Raises the error that ended the generation."""
        try:
            async with asyncio.timeout(timeout):
                item = await self._next()
        except TimeoutError:
            return
        if item is not None:
            self._ahead.append(item)

    async def __aiter__(self) -> AsyncIterator[T]:
        while self._ahead:
            yield self._ahead.pop(0)
        while (item := await self._next()) is not None:
            yield item

    async def _next(self) -> T | None:
        """Return the next item of any choice; ``None`` when all have ended."""
        while self._num_open:
            if time.monotonic() > self._pause_at:  # otherwise a backlog would block the event loop
                await asyncio.sleep(0)
                self._pause_at = time.monotonic() + _PAUSE_SECONDS
            item = await self._queue.get()
            if isinstance(item, Exception):
                self.close()
                raise item
            if item is not None:
                self._held -= 1 + (0 if self._keeps_all else self._weight(item))
                return item
            self._num_open -= 1
        return None

    def _too_much(self) -> ApiError:
        return too_many_token_details(MAX_KEPT) if self._keeps_all else too_much_unread()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _pump(self, choice: AsyncGenerator[T, None]) -> None:
        try:
            async with until(self._deadline), aclosing(choice):
                async for item in choice:
                    if self._held > (MAX_KEPT if self._keeps_all else MAX_UNREAD):
                        raise self._too_much()
                    self._held += 1 + self._weight(item)
                    self._queue.put_nowait(item)
        except Exception as error:
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)
