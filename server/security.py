"""Who may ask: a bearer key on every address except the exempt ones, pages of named origins. Knows nothing of
routes or bodies.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import forbidden_origin, unauthorized

# What probes of containers and load balancers ask, which say yes or no and nothing else.
PROBE_PATHS = ("/health", "/ready")


class ApiKeyMiddleware:
    """Denies by default: whatever is not exactly an exempt path needs a key, existing route or not."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], public_paths: Collection[str] = ()) -> None:
        self._app = app
        self._exempt = (*PROBE_PATHS, *public_paths)
        self._digests = [sha256(spelled).digest() for key in keys for spelled in spellings(key)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_exempt(scope) or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await unauthorized().response()(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_exempt(self, scope: Scope) -> bool:
        root_path: str = scope.get("root_path", "")
        path: str = scope["path"]
        return scope["type"] == "http" and path in [root_path + exempt for exempt in self._exempt]

    def _has_key(self, scope: Scope) -> bool:
        header = Headers(scope=scope).get("authorization", "").encode("latin-1")  # the bytes that were sent
        scheme, _, key = header.partition(b" ")
        digest = sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def spellings(key: str) -> Iterator[bytes]:
    """As clients send it: most in UTF-8; browsers and Python's libraries in Latin-1, if they can."""
    yield key.encode("utf-8", "surrogateescape")
    if max(key) <= "\xff":
        yield key.encode("latin-1")


class OriginMiddleware(CORSMiddleware):
    """Tells browsers which origins' pages may ask; refuses others in the shape of every other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        allowed = super().preflight_response(request_headers)
        if allowed.status_code == 200:
            return allowed
        refusal = forbidden_origin(request_headers["Origin"]).response()
        kept = {name: value for name, value in allowed.headers.items() if not name.startswith("content-")}
        refusal.headers.update(kept)
        return refusal
