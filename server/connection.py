"""HTTP connections: time limits for request heads and for unread answers, and errors for invalid requests.

They are parsed by h11 (heads of at most 64 KiB) instead of httptools, which collects heads of any size in
quadratic time, drops the body of a request that also offers another protocol (as Java's client does by
default), and answers HTTP/1.0 in chunks. h11 costs microseconds more per chunk.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.context import HEADER
from server.errors import ApiError, bad_request, head_too_large

MAX_HEAD_BYTES: Final = 64 * 1024

HEAD_SECONDS: Final = 30.0
"""Time limit for the head of a request, from the start of a connection or the first byte after an answer.
A connection may also be idle for this long after an answer: httpx drops it after 5 seconds, and a server that
closes it at the same moment loses a request sent on it.
"""

UNREAD_SECONDS: Final = 60.0
"""Time limit for a client to resume reading once all buffers in between are full."""


ORIGIN: Final = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class Reader(h11.Connection):
    """Rejects a body with two lengths: a proxy in front may have used the other one (RFC 9112, 6.3).
    ``refusal`` is the error for a rejected request, if there is a better one than h11's. Skips empty lines
    before a request: some clients send one after a body, outside of it (2.2). Accepts absolute URLs (3.2.2).
    """

    refusal: ApiError | None = None

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            unread = self._receive_buffer
            while unread._data.startswith(b"\r\n"):
                unread.maybe_extract_at_most(2)
            if unread._data == b"\r":
                return h11.NEED_DATA
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                self.refusal = head_too_large(MAX_HEAD_BYTES)
            raise
        return self._accepted(event) if isinstance(event, h11.Request) else event

    def _accepted(self, request: h11.Request) -> h11.Request:
        names = {name for name, _ in request.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            message = "Send 'Content-Length' or 'Transfer-Encoding', not both."
            self.refusal = bad_request(message, code="invalid_http")
            raise h11.RemoteProtocolError(message)
        if not (origin := ORIGIN.match(request.target)):
            return request
        path = request.target[origin.end() :]
        return h11.Request(
            method=request.method,
            headers=list(request.headers),
            target=path if path.startswith(b"/") else b"/" + path,
            http_version=request.http_version,
        )


class Connection(H11Protocol):
    _too_late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: Reader = Reader(h11.SERVER, MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        if self._unread is not None:
            self._unread.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def timeout_keep_alive_handler(self) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        """Abort if anything is unsent: a close would wait for it forever if the client does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Run the timer while no request is being answered. Bytes of an incomplete head do not extend it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._too_late is None:
            self._too_late = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _forget(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def send_400_response(self, msg: str) -> None:
        """Answer in the format of all errors, unless an answer has begun."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            refusal = self.conn.refusal or bad_request(msg, code="invalid_http")
            error = refusal.answer.model_dump_json().encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(error))),
                (HEADER, self._request_id()),
                ("Connection", "close"),
            ]
            reason = HTTPStatus(refusal.status).phrase.encode()
            head = h11.Response(status_code=refusal.status, headers=headers, reason=reason)
            for event in (head, h11.Data(data=error), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _request_id(self) -> str:
        """Return the id of the request that is being answered, or a new one."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        state = self.scope["state"] if is_open else {}
        return str(state.get("request_id") or uuid.uuid4().hex)
