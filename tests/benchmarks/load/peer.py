"""Somebody else's server, as small as it can be: OpenAI's chat stream, Prometheus counters, no extensions."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("one ", "two ", "three")
COUNTERS = """# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0"}} {drafts}
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {tokens}
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {accepted}
"""


class Peer(ThreadingHTTPServer):
    """Every answer is ``WORDS``: two rounds, of three drafts each, one of which is accepted in all."""

    daemon_threads = True
    model = "peer-vlm"
    key: str | None = None
    usage = True
    takes_salt = False
    num_answers = 0
    fails_at: int | None = None
    """The number of the answer that fails, from 0: greetings count."""
    fails_from: int | None = None
    """The number of the answer from which on all fail."""
    interrupts_at: int | None = None
    """The number of the question at which Ctrl-C is simulated, without an answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Peer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": self.server.model}]})
        elif self.path == "/metrics":
            count = self.server.num_answers
            self._send(200, COUNTERS.format(drafts=2 * count, tokens=6 * count, accepted=count).encode())
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may():
            return
        if "cache_salt" in body and not self.server.takes_salt:
            self._json(400, {"error": {"message": "Unrecognized request argument supplied: cache_salt"}})
            return
        self.server.bodies.append(body)
        number = len(self.server.bodies) - 1
        if number == self.server.interrupts_at:
            os.kill(os.getpid(), signal.SIGINT)
            return
        fails_from = self.server.fails_from
        if number == self.server.fails_at or (fails_from is not None and number >= fails_from):
            self._json(500, {"error": {"message": "Out of memory"}})
            return
        chunks: list[Any] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
        chunks += [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in WORDS]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if self.server.usage:
            chunks.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
        self.server.num_answers += 1
        data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self._send(200, data.encode(), "text/event-stream")

    def _may(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._json(401, {"error": {"message": "Incorrect API key provided"}})
        return False

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running_peer() -> Iterator[Peer]:
    with Peer() as peer:
        thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield peer
        finally:
            peer.shutdown()
            thread.join()
