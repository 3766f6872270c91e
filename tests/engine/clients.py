"""What the tests of both clients share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from engine.client import EngineClient
from engine.messages import GenerateRequest, RequestOutput


async def outputs_of(client: EngineClient, request: GenerateRequest) -> list[RequestOutput]:
    """All outputs, of which exactly the last has a finish reason."""
    outputs = [output async for output in client.generate(request)]
    assert [output.finish_reason is not None for output in outputs].index(True) == len(outputs) - 1
    return outputs


async def collect(client: EngineClient, request: GenerateRequest) -> list[int]:
    return [token for output in await outputs_of(client, request) for token in output.token_ids]


async def until(condition: Callable[[], bool]) -> None:
    """Without a limit of its own: the machine may be slow, and the test has one."""
    while not condition():  # noqa: ASYNC110 (most conditions have no event)
        await asyncio.sleep(0.005)


async def until_idle(client: EngineClient) -> None:
    """Until the engine itself says that it runs nothing."""
    idle = asyncio.Event()
    client.add_listener(lambda report: idle.set() if report.stats.num_running == 0 else None)
    await idle.wait()
