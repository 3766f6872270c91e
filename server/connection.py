"""A connection around its requests: how long a head may take, and how long an answer may lie unread; what is
said to a request that is none.

h11 reads it (at most 64 KiB of a head), and not httptools, which gathers heads of any size in quadratic
time, drops the body of a request that also offers another protocol (as Java's client does, unasked), and
answers HTTP/1.0 in chunks. Its price is microseconds a chunk.
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
"""From the start of a connection, or from the first byte after an answer, until a request has its head. As
long may a connection rest after an answer: httpx gives it up after 5 seconds, and a server that does so at
the same moment loses what is sent in it.
"""

UNREAD_SECONDS: Final = 60.0
"""For a client to go on reading, once all that is between us is full."""


ORIGIN: Final = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class Reader(h11.Connection):
    """Refuses a body of two lengths: a proxy in front may have believed the other one (RFC 9112, 6.3).
    ``refusal``: of what it refused, where that can be told better than h11 does. Passes over empty lines
    before a request: some clients end a body by one, which is not part of it (2.2). Takes whole URLs (3.2.2).
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
            told = "Send 'Content-Length' or 'Transfer-Encoding', not both."
            self.refusal = bad_request(told, code="invalid_http")
            raise h11.RemoteProtocolError(told)
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
        """A close waits until all is sent: for ever, if the last answer is not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch(self) -> None:
        """Time runs while nothing is asked. More bytes of what is no request yet gain none."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._too_late is None:
            self._too_late = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _forget(self) -> None:
        if self._too_late is not None:
            self._too_late.cancel()
            self._too_late = None

    def send_400_response(self, msg: str) -> None:
        """In the shape of every other error, unless an answer has begun."""
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
        """Of the request that is being answered, or a new one."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        state = self.scope["state"] if is_open else {}
        return str(state.get("request_id") or uuid.uuid4().hex)
