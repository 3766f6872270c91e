"""Requests end exactly once: clients that hang up, an engine that dies, a full queue, a shutdown."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog

from tests.server.background import Background
from tests.server.conftest import MODEL, Live, StartServer, wait_until

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
STREAMED = VALID | {"stream": True}
HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"


def num_admitted(live: Live) -> int:
    return live.server._app.state.server.admission.num_open


def test_hanging_up_in_a_stream_ends_the_work(live: Live, http: httpx.Client) -> None:
    live.engine.answer = live.engine.says("x" * 200, pause=0.01)
    with http.stream("POST", CHAT, json=VALID | {"stream": True, "n": 2}) as response:
        for line in response.iter_lines():
            if '"content":"x"' in line:
                break
    wait_until(lambda: live.engine.num_open == 0)
    assert len(live.engine.closed_early) == 2
    wait_until(lambda: num_admitted(live) == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_before_the_first_token_ends_the_work(live: Live, stream: bool) -> None:
    live.engine.stalled = True
    with live.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=VALID | {"stream": stream}, timeout=0.3)
    wait_until(lambda: live.engine.num_open == 0)
    assert len(live.engine.closed_early) == 1
    wait_until(lambda: num_admitted(live) == 0)


def test_hanging_up_while_pictures_load(live: Live, monkeypatch: Any) -> None:
    monkeypatch.setattr(live.media, "delay", 0.5)
    picture = {"type": "image_url", "image_url": {"url": "color:red"}}
    with live.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=VALID | {"messages": [{"role": "user", "content": [picture]}]}, timeout=0.2)
    wait_until(lambda: num_admitted(live) == 0)
    assert live.engine.requests == []


async def test_cancelling_an_async_client_ends_the_work(live: Live) -> None:
    live.engine.answer = live.engine.says("x" * 200, pause=0.01)
    async with live.async_openai() as client:
        asking = asyncio.create_task(client.chat.completions.create(**VALID))
        await asyncio.to_thread(wait_until, lambda: live.engine.num_open == 1)
        asking.cancel()
        await asyncio.wait([asking])
    await asyncio.to_thread(wait_until, lambda: live.engine.num_open == 0)
    assert len(live.engine.closed_early) == 1


def test_health_answers_while_a_prompt_is_processed(
    live: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, processing, answered = live.engine.processor, threading.Event(), threading.Event()
    apply = processor.apply

    def slow(*args: Any, **kwargs: Any) -> Any:
        processing.set()
        assert answered.wait(60)
        return apply(*args, **kwargs)

    monkeypatch.setattr(processor, "apply", slow)

    def ask() -> int:
        with live.http() as other:
            return other.post(CHAT, json=VALID, timeout=60).status_code

    asking = Background(ask)
    assert processing.wait(60)
    assert http.get("/health").status_code == 200
    answered.set()
    assert asking.wait() == 200


def test_engine_death_is_told_to_every_open_request(live: Live, http: httpx.Client) -> None:
    live.engine.stalled = True

    def ask(stream: bool) -> httpx.Response:
        with live.http() as other:
            return other.post(CHAT, json=VALID | {"stream": stream})

    asking = [Background(lambda stream=stream: ask(stream)) for stream in (False, True)]
    wait_until(lambda: live.engine.num_open == 2)
    live.engine.state = "failed"
    for response in (thread.wait() for thread in asking):
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "engine_dead"

    live.engine.state = "restarting"
    response = http.post(CHAT, json=VALID)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert int(response.headers["Retry-After"]) > 0
    assert http.get("/ready").status_code == 503
    assert http.get("/health").status_code == 200

    live.engine.reset()
    assert http.get("/ready").status_code == 200
    assert http.post(CHAT, json=VALID).status_code == 200


def test_a_full_queue(start_server: StartServer) -> None:
    live = start_server(max_num_seqs=1, max_num_queued_reqs=1)
    live.engine.stalled = True

    def ask() -> httpx.Response:
        with live.http() as other:
            return other.post(CHAT, json=VALID)

    asking = [Background(ask), Background(ask)]
    wait_until(lambda: live.engine.num_open == 2)
    with live.http() as http:
        response = http.post(CHAT, json=VALID)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "queue_full"
        assert int(response.headers["Retry-After"]) > 0
        counted = (
            'specvlm:admission_rejections_total{engine="0",model_name="fake-vlm",reason="queue_full"} 1.0'
        )
        assert counted in http.get("/metrics").text
        live.engine.stalled = False
        assert [thread.wait().status_code for thread in asking] == [200, 200]
        assert http.post(CHAT, json=VALID).status_code == 200
        assert http.post(CHAT, json=VALID | {"n": 5}).status_code == 200


def test_clients_retry_when_the_queue_is_full(start_server: StartServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("server.errors.RETRY_AFTER_SECONDS", 1)
    live = start_server(max_num_seqs=1, max_num_queued_reqs=0)
    live.engine.stalled = True
    with live.openai() as patient, live.openai(max_retries=3) as retrying:
        first = Background(lambda: patient.chat.completions.create(**VALID))
        wait_until(lambda: live.engine.num_open == 1)
        second = Background(lambda: retrying.chat.completions.create(**VALID))
        time.sleep(0.2)
        live.engine.stalled = False
        assert first.wait().choices[0].message.content == "Hello, world!"
        assert second.wait().choices[0].message.content == "Hello, world!"


def test_an_idle_stream_is_kept_alive(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.serving.PING_SECONDS", 0.1)
    live.engine.stalled = True
    lines: list[str] = []
    with live.http() as http, http.stream("POST", CHAT, json=STREAMED) as response:
        for line in response.iter_lines():
            lines += [line] if line else []
            live.engine.stalled = sum(line.startswith(": ping") for line in lines) < 2
    assert lines[-1] == "data: [DONE]"


def stream_text(live: Live) -> str:
    with live.http() as http:
        return http.post(CHAT, json=STREAMED).text


def test_shutdown_lets_open_answers_finish(start_server: StartServer) -> None:
    live = start_server(shutdown_timeout=10)
    live.engine.answer = live.engine.says("x" * 50, pause=0.02)
    asking = Background(lambda: stream_text(live))
    wait_until(lambda: live.engine.num_open == 1)
    live.server.should_exit = True
    text = asking.wait()
    assert text.rstrip().endswith("data: [DONE]")
    assert text.count('"content":"x"') == 50
    live.thread.join(timeout=5)
    assert not live.thread.is_alive()
    assert live.engine.state == "stopped"


def test_shutdown_tells_those_who_do_not_finish(start_server: StartServer) -> None:
    live = start_server(shutdown_timeout=0.3)
    live.engine.answer = live.engine.says("x" * 1000, pause=0.02)

    def ask() -> httpx.Response:
        with live.http() as http:
            return http.post(CHAT, json=VALID)

    streaming, waiting = Background(lambda: stream_text(live)), Background(ask)
    wait_until(lambda: live.engine.num_open == 2)
    live.server.should_exit = True
    last = [line for line in streaming.wait().splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    response = waiting.wait()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "shutting_down"
    live.thread.join(timeout=5)
    assert not live.thread.is_alive()


PROGRAM = """
import sys
from tests.server.background import Background
from tests.server.conftest import FakeMedia, MODEL
from tests.server.fakes import ByteProcessor, FakeEngineClient
from server.app import create_app
from server.logs import configure_logging
from server.run import make_server
from server.settings import ServeSettings

configure_logging("info", "json")
processor = ByteProcessor()
engine = FakeEngineClient(processor)
engine.loads = sys.argv[1] == "loads"
engine.answer = engine.says("x" * 20, pause=float(sys.argv[2]))
settings = ServeSettings(port=0, served_model_name=[MODEL])
app = create_app(settings, client=engine, processor=processor, media=FakeMedia())
server = make_server(settings, app, engine)
server.run()
sys.exit(server.exit_code)
"""


def start_program(mode: str, pause: float = 0.05) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECVLM_")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode, str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    greeting = next(line for line in process.stdout if "serves" in line)
    return re.findall(r" at (\S+/v1)\b", greeting)[0]


def test_sigterm_drains_a_real_process() -> None:
    process = start_program("loads")
    with httpx.stream("POST", url_of(process) + "/chat/completions", json=STREAMED, timeout=60) as response:
        lines = response.iter_lines()
        told = [next(lines)]  # as it began, it is open
        process.send_signal(signal.SIGTERM)
        told += lines
    assert sum('"content":"x"' in line for line in told) == 20
    assert process.wait(timeout=60) == -signal.SIGTERM
    process.communicate()


def test_a_half_sent_body_holds_up_no_shutdown(start_server: StartServer) -> None:
    """It did for `--shutdown-timeout`, and ended in a 500 in plain text."""
    live = start_server(shutdown_timeout=30)
    address = urlsplit(live.url)
    with closing(socket.create_connection((address.hostname, address.port), timeout=10)) as connection:
        connection.sendall(HALF)
        wait_until(lambda: bool(live.server._app.state.open_bodies._limits))
        live.server.should_exit = True
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"shutting_down"' in answer
    live.thread.join(timeout=10)
    assert not live.thread.is_alive()


def test_who_hangs_up_within_a_body_sent_no_bad_one(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    address = urlsplit(live.url)
    log = structlog.testing.CapturingLogger()
    monkeypatch.setattr("server.context.log", log)
    with closing(socket.create_connection((address.hostname, address.port), timeout=10)) as connection:
        connection.sendall(HALF)
        wait_until(lambda: bool(live.server._app.state.open_bodies._limits))
    wait_until(lambda: bool(log.calls))
    assert [call.kwargs["status"] for call in log.calls] == [499]


def test_a_second_ctrl_c_waits_for_nobody() -> None:
    process = start_program("loads", pause=1)
    assert process.stderr is not None
    with httpx.stream("POST", url_of(process) + "/chat/completions", json=STREAMED, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        next(line for line in process.stderr if "draining" in line)
        process.send_signal(signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):  # cut off; who waits gets an event that says why
            list(lines)
    process.wait(timeout=60)
    process.communicate()


def test_a_model_that_cannot_load_ends_the_process() -> None:
    process = start_program("fails")
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the weights are missing" in stderr


def test_an_engine_is_watched_even_if_nobody_reads_the_greeting(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    live = start_server()
    live.engine.state = "failed"
    wait_until(lambda: not live.thread.is_alive(), seconds=8)
    assert live.server.exit_code == 1
