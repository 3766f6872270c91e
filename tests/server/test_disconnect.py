"""Work of clients that hung up."""

from __future__ import annotations

import asyncio
import gc

import pytest

from server.disconnect import unless_disconnected
from server.errors import ClientGone


def test_failures_of_those_who_hung_up_are_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("too late")

    class Gone:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    async def hang_up() -> None:
        with pytest.raises(ClientGone):
            await unless_disconnected(Gone(), fails())  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        gc.collect()

    asyncio.run(hang_up())
    assert "never retrieved" not in caplog.text
