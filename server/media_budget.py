"""Limits how many decoded pixels the process holds at a time. Knows neither pictures nor requests.

A request takes all that it needs at once, before it decodes anything: if it took them picture by picture,
two requests could deadlock. First come, first served, so that small ones cannot starve a large one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


class PixelBudget:
    """A budget of pixels, bound to one event loop."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()  # fair
        self._given_back = asyncio.Event()

    @property
    def num_free(self) -> int:
        return self._free

    async def take(self, num_pixels: int) -> PixelShare:
        """Wait for a share, which must be closed. Raises ``ValueError`` for more than the total."""
        if num_pixels > self._total:
            raise ValueError(f"{num_pixels} pixels of {self._total}")
        if num_pixels:  # requests without pictures do not wait
            async with self._turn:
                while num_pixels > self._free:
                    self._given_back.clear()
                    await self._given_back.wait()
                self._free -= num_pixels
        return PixelShare(num_pixels, self._give_back)

    def _give_back(self, num_pixels: int) -> None:
        self._free += num_pixels
        self._given_back.set()


class PixelShare:
    """Returned to the budget once it is closed and the last thread working on it has ended.

    A cancelled request leaves its thread decoding: the memory is in use until the thread is done.
    """

    def __init__(self, num_pixels: int, give_back: Callable[[int], None]) -> None:
        self._num_pixels = num_pixels
        self._give_back = give_back
        self._num_users = 1

    async def run(self, pool: Executor, call: Callable[..., T], *args: object) -> T:
        """Like ``run_in_executor``, for work on these pixels."""
        loop = asyncio.get_running_loop()
        future = pool.submit(call, *args)
        self._num_users += 1

        def left(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the budget with it
                loop.call_soon_threadsafe(self._leave)

        future.add_done_callback(left)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._num_users -= 1
        if self._num_users == 0:
            self._give_back(self._num_pixels)
