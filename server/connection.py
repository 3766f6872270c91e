"""A connection around its requests: how long a head may take, and how long an answer may lie unread; what is
said to a request that is none.

h11 reads it (at most 64 KiB of a head), and not httptools, which gathers heads of any size in quadratic
time, drops the body of a request that also offers another protocol (as Java's client does, unasked), and
answers HTTP/1.0 in chunks. Its price is microseconds a chunk.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.context import HEADER
from server.errors import bad_request

MAX_HEAD_BYTES: Final = 64 * 1024

HEAD_SECONDS: Final = 30.0
"""From the start of a connection, or from the first byte after an answer, until a request has its head. As
long may a connection rest after an answer: httpx gives it up after 5 seconds, and a server that does so at
the same moment loses what is sent in it.
"""

UNREAD_SECONDS: Final = 60.0
"""For a client to go on reading, once all that is between us is full."""


class Reader(h11.Connection):
    """Refuses a body of two lengths: a proxy in front may have believed the other one (RFC 9112, 6.3).
    ``refusal``: that it did. Passes over empty lines before a request: some clients end a body by one, which
    is not part of it (2.2).
    """

    refusal = ""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            unread = self._receive_buffer
            while unread._data.startswith(b"\r\n"):
                unread.maybe_extract_at_most(2)
            if unread._data == b"\r":
                return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                self.refusal = "Send 'Content-Length' or 'Transfer-Encoding', not both."
                raise h11.RemoteProtocolError(self.refusal)
        return event


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
            refusal = bad_request(self.conn.refusal or msg, code="invalid_http")
            error = refusal.answer.model_dump_json().encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(error))),
                (HEADER, self._request_id()),
                ("Connection", "close"),
            ]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=error), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _request_id(self) -> str:
        """Of the request that is being answered, or a new one."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        state = self.scope["state"] if is_open else {}
        return str(state.get("request_id") or uuid.uuid4().hex)
