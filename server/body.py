"""Reads JSON bodies: uncompressed, of limited size in bytes and in parts (``server.json_size``), in UTF-8
without lone surrogates, NaN or deep nesting.

The framework's own limit would answer in plain text, this one in the format of all errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from server.errors import (
    CLIENT_CLOSED_REQUEST,
    BodyRefused,
    body_too_costly,
    body_too_large,
    shutting_down,
)
from server.json_size import JsonSize

BODY_SECONDS: Final = 120.0
"""Time limit for a whole body, so that a slow client cannot hold its connection forever."""


class OpenBodies:
    """Bodies that are being received. ``close`` aborts them, and any that begins later."""

    def __init__(self) -> None:
        self._limits: set[asyncio.Timeout] = set()
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True
        for limit in self._limits:
            limit.reschedule(0)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Raise ``TimeoutError`` if a body takes too long."""
        async with asyncio.timeout(0 if self.is_closed else BODY_SECONDS) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)


class StrictRequest(Request):
    """Takes its size limit in bytes, ``max_request_size``, and ``open_bodies`` from the state of the app."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self._json_size = JsonSize()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        if any(one.lower() != "identity" for one in self.headers.getlist("content-encoding")):
            raise HTTPException(415)
        limit: int = self.app.state.max_request_size
        if int(self.headers.get("content-length", 0)) > limit:
            raise BodyRefused(body_too_large(limit))
        size = 0
        async for chunk in super().stream():
            size += len(chunk)
            if size > limit:
                raise BodyRefused(body_too_large(limit))
            self._json_size.add(chunk)
            yield chunk

    async def body(self) -> bytes:
        bodies: OpenBodies = self.app.state.open_bodies
        try:
            async with bodies.reading():
                return await super().body()
        except TimeoutError:
            if bodies.is_closed:
                raise BodyRefused(shutting_down()) from None
            raise HTTPException(408, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise HTTPException(CLIENT_CLOSED_REQUEST) from None

    async def json(self) -> Any:
        body = await self.body()
        if (excess := self._json_size.excess) is not None:
            raise BodyRefused(body_too_costly(excess))
        return from_json(body, allow_inf_nan=False)


class StrictRoute(APIRoute):
    """A route whose request is a ``StrictRequest``; a body that cannot be parsed results in a 400."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly
