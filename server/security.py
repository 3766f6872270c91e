"""Access control: a bearer key for every path except exempt ones, and CORS for allowed origins. Knows nothing
of routes or bodies.
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

# For probes of containers and load balancers; their answers are yes or no and nothing else.
PROBE_PATHS = ("/health", "/ready")


class ApiKeyMiddleware:
    """Denies by default: any path that is not exactly an exempt one needs a key, whether it exists or not."""

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
    """Yield the encodings of a key that clients send: mostly UTF-8; in browsers and Python libraries Latin-1
    if possible.
    """
    yield key.encode("utf-8", "surrogateescape")
    if max(key) <= "\xff":
        yield key.encode("latin-1")


class OriginMiddleware(CORSMiddleware):
    """CORS for the allowed origins; other origins are rejected in the format of all errors."""

    def preflight_response(self, request_headers: Headers) -> Response:
        allowed = super().preflight_response(request_headers)
        if allowed.status_code == 200:
            return allowed
        refusal = forbidden_origin(request_headers["Origin"]).response()
        kept = {name: value for name, value in allowed.headers.items() if not name.startswith("content-")}
        refusal.headers.update(kept)
        return refusal
