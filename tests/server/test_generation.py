"""Several choices as one stream, whoever reads it, and how."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

from server.errors import ApiError
from server.generation import MAX_KEPT, MAX_UNREAD, Generation


async def numbers(count: int, weight: int = 1) -> AsyncGenerator[int, None]:
    for _ in range(count):
        yield weight
        await asyncio.sleep(0)


def generation(*choices: AsyncGenerator[int, None], keeps_all: bool = False) -> Generation[int]:
    return Generation(choices, lambda: None, weight=lambda item: item, keeps_all=keeps_all)


def test_a_backlog_lets_others_run_between_its_items() -> None:
    """It was formatted in one go, which a client that hung up could not even stop."""

    async def turns() -> int:
        backlog, passed = generation(numbers(300)), 0
        await asyncio.sleep(0.2)

        async def other() -> None:
            nonlocal passed
            while True:
                passed += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        async for _ in backlog:
            time.sleep(0.001)  # noqa: ASYNC251 (as formatting takes)
        beside.cancel()
        return passed

    assert asyncio.run(turns()) >= 10


def test_what_nobody_reads_ends_with_an_error_and_what_is_read_does_not() -> None:
    heavy = MAX_UNREAD // 4

    taken: list[int] = []

    async def unread() -> None:
        waiting = generation(numbers(50, heavy), numbers(50, heavy))
        await asyncio.sleep(0.2)
        async for item in waiting:
            taken.append(item)  # noqa: PERF401 (kept when it raises)

    async def read() -> int:
        return len([item async for item in generation(numbers(50, heavy), numbers(50, heavy))])

    with pytest.raises(ApiError, match="read too slowly"):
        asyncio.run(unread())
    assert len(taken) < 8
    assert asyncio.run(read()) == 100


def test_what_is_kept_is_bounded_however_it_is_read() -> None:
    """Texts alone are small: only what is in the items counts, once they are read."""

    async def read(*choices: AsyncGenerator[int, None]) -> int:
        return len([item async for item in generation(*choices, keeps_all=True)])

    heavy = MAX_KEPT // 40
    assert asyncio.run(read(numbers(20, heavy), numbers(19, heavy))) == 39
    assert asyncio.run(read(numbers(1000, 0))) == 1000
    with pytest.raises(ApiError, match="more than 1000000 tokens, alternatives and traced nodes"):
        asyncio.run(read(numbers(30, heavy), numbers(30, heavy)))
