"""What a client may do to a connection before any key is read."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from server.connection import MAX_HEAD_BYTES
from tests.server.conftest import MODEL, Live

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WHOLE = POST + b"Content-Length: %d\r\n" % len(BODY)


def connect(live: Live) -> closing[socket.socket]:
    address = urlsplit(live.url)
    return closing(socket.create_connection((address.hostname, address.port), timeout=10))


def rest(connection: socket.socket) -> bytes:
    """Until the server hangs up."""
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


@pytest.mark.parametrize(
    "begin", [b"", b"GET /health HTTP/1.1\r\nX-A: ", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nG"]
)
def test_a_connection_that_asks_nothing_is_cut(
    live: Live, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """Nothing, half a head, and half a head after an answer, each with bytes that keep dripping."""
    monkeypatch.setattr("server.connection.HEAD_SECONDS", 0.3)
    with connect(live) as connection:
        connection.sendall(begin)
        connection.settimeout(0.05)
        for _ in range(100):
            try:
                if begin:
                    connection.sendall(b"G")
                if connection.recv(4096) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
        pytest.fail("it is open after 5 seconds")


def test_the_client_is_the_first_to_let_go_of_an_idle_connection(live: Live) -> None:
    """httpx, and so the `openai` package, uses one for 5 seconds. Closed by then, requests would be lost."""
    with connect(live) as connection:
        for pause in (0, 5.5):
            time.sleep(pause)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", [b"GET /", b"GET /health HTTP/1.1\r\nX-A: ", b"GET /health HTTP/1.1\r\n"])
def test_an_endless_head_is_refused(live: Live, head: bytes) -> None:
    line = b"X-B: c\r\n" if head.endswith(b"\n") else b"aaaaaaaa"
    with connect(live) as connection, pytest.raises(ConnectionError):
        flood(connection, head, line * 1024)


def flood(connection: socket.socket, head: bytes, kilobytes: bytes) -> None:
    connection.sendall(head)
    for _ in range(4096):
        connection.sendall(kilobytes)


def test_cookies_that_are_too_long_are_told_so(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nCookie: ")
        connection.sendall(
            b"a=b; " * (MAX_HEAD_BYTES // 5)
        )  # what is sent behind it may reset the connection
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert json.loads(body)["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://x/health", b"200"),
        (b"HTTPS://x:443/health?a=http://y/z", b"200"),
        (b"http://x", b"200"),
        (b"http://x/health/http://x/health", b"404"),
    ],
)
def test_whole_urls_are_taken_as_servers_must(live: Live, target: bytes, status: bytes) -> None:
    """RFC 9112, 3.2.2. The last but one is the page."""
    with connect(live) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert rest(connection).split(b" ", 2)[1] == status


def test_what_is_no_http_is_told_so_as_everything_else(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = rest(connection).partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert b"\r\nx-request-id: " in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("pause", [0.0, 0.3])
@pytest.mark.parametrize("stray", [(b"\r\n",), (b"\r\n\r\n",), (b"\r", b"\n")])
def test_empty_lines_before_a_request_are_no_request(
    live: Live, stray: tuple[bytes, ...], pause: float
) -> None:
    """Some clients end a body by one, which is not part of it (RFC 9112, 2.2)."""
    with connect(live) as connection:
        connection.sendall(WHOLE + b"\r\n" + BODY)
        for part in stray:
            time.sleep(pause)
            connection.sendall(part)
        time.sleep(pause)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = rest(connection)
    assert (answers.count(b"HTTP/1.1 "), answers.count(b"HTTP/1.1 200 OK")) == (2, 2)


def test_what_breaks_in_its_body_is_refused_by_its_own_name(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(POST + b"X-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n")
        time.sleep(0.2)
        connection.sendall(b"no size\r\n")
        assert b"\r\nx-request-id: mine\r\n" in rest(connection).lower()


@pytest.mark.parametrize("order", [1, -1])
def test_a_body_of_two_lengths_is_refused(live: Live, order: int) -> None:
    """A proxy may believe one, we the other: what is behind the shorter could be somebody else's request."""
    lengths = [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    hidden = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(live) as connection:
        connection.sendall(POST + b"".join(lengths) + b"\r\n0\r\n\r\n" + hidden)
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"'Content-Length' or 'Transfer-Encoding', not both" in answer
    assert live.engine.requests == []


def test_what_breaks_behind_its_answer_is_dropped(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 200 " in connection.recv(65536)
        connection.sendall(b"no size\r\n")
        assert rest(connection) == b""


def test_an_offer_of_another_protocol_is_ignored(live: Live) -> None:
    """Java's client offers h2c with every request, its body right behind."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    with connect(live) as connection:
        connection.sendall(WHOLE + offer + BODY)
        assert b" 200 " in connection.recv(65536).splitlines()[0]


def test_http_1_0_gets_a_stream_without_chunks(live: Live) -> None:
    body = BODY[:-1] + b', "stream": true}'
    with connect(live) as connection:
        head = WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"%d" % len(BODY), b"%d" % len(body))
        connection.sendall(head + b"\r\n" + body)
        head, _, events = rest(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
def test_who_does_not_read_is_let_go(live: Live, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    """However much is left to send, and with nothing of it kept."""
    monkeypatch.setattr("server.connection.UNREAD_SECONDS", 0.5)
    live.engine.answer = live.engine.says("x" * 200, step=10)
    fields = {"n": 32, "max_tokens": 200, "logprobs": True, "top_logprobs": 20, "stream": stream}
    body = json.dumps(json.loads(BODY) | fields).encode()
    address = urlsplit(live.url)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((address.hostname, address.port))
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        deadline = time.monotonic() + 60
        while len(live.engine.requests) < 32 or live.engine.num_open:
            assert time.monotonic() < deadline, "the answer is still being made"
            time.sleep(0.05)
        time.sleep(2)
        try:  # what the system had taken over still comes
            head, _, answer = rest(connection).partition(b"\r\n\r\n")
        except ConnectionError:
            return
    length = [
        int(line.split()[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
    ]
    assert length or not answer.endswith(b"0\r\n\r\n")
    assert not length or len(answer) < length[0]
