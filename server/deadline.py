"""Time limits of requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import request_timeout


def deadline_after(seconds: float | None) -> float | None:
    """Return the deadline in the event loop's time; ``None`` means no limit."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Cancel the body at ``deadline``, raising ``ApiError``. The body's own ``TimeoutError`` gets through."""
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise request_timeout() from None
        raise
