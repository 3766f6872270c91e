"""How long a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import request_timeout


def deadline_after(seconds: float | None) -> float | None:
    """In the event loop's time; ``None`` sets no limit."""
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Raises ``ApiError`` in what is inside when its time is over. A ``TimeoutError`` of its own gets out."""
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise request_timeout() from None
        raise
