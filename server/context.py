"""The id of a request: taken from ``X-Request-Id`` or generated, returned, and bound to its log lines. When a
request ends, it is logged and counted.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Set
from typing import Protocol

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.schemas.base import MAX_SHOWN

HEADER = "X-Request-Id"
ALLOWED_ID = re.compile(r"[\x21-\x7e]{1,128}")

log = structlog.get_logger("server.access")


class OnResponse(Protocol):
    def __call__(self, handler: str, status: int) -> None: ...


class RequestContextMiddleware:
    """``scope["state"]["request_id"]`` is the id; a route may replace it before it answers. Requests for
    ``quiet_paths`` are not counted, and logged at debug level only.
    """

    def __init__(self, app: ASGIApp, on_response: OnResponse, quiet_paths: Set[str]) -> None:
        self._app = app
        self._on_response = on_response
        self._quiet_paths = quiet_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = requested_id(scope) or uuid.uuid4().hex
        status = 0
        start = time.monotonic()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = state["request_id"]
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=state["request_id"])
        try:
            await self._app(scope, receive, send_named)
        except Exception:
            status = status or 500  # sent by an outer middleware
            log.exception("request_failed")
            raise
        finally:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            quiet = path in self._quiet_paths
            if not quiet:
                self._on_response(route_of(scope), status)
            write = log.debug if quiet else log.info
            write(
                "request",
                method=scope["method"][:MAX_SHOWN],
                path=path[:MAX_SHOWN],
                status=status,
                seconds=round(time.monotonic() - start, 4),
                request_id=state["request_id"],
            )


def route_of(scope: Scope) -> str:
    """Return the pattern of the route, such as ``/v1/models/{name}``; ``none`` if there is none."""
    return getattr(scope.get("route"), "path", "none")


def requested_id(scope: Scope) -> str | None:
    wanted = Headers(scope=scope).get(HEADER, "")
    return wanted if ALLOWED_ID.fullmatch(wanted) else None
