"""Time limits of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from server.errors import ApiError, request_timeout


def deadline_after(seconds: float | None) -> float | None:
    """Return the deadline in the event loop's time; ``None`` means no limit."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def until(
    deadline: float | None, expired: Callable[[], ApiError] = request_timeout
) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the body at ``deadline``, raising the error of ``expired``. The body's own ``TimeoutError`` gets
    through.
    """
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if limit.expired():
            raise expired() from None
        raise
