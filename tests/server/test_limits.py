"""What one client may take from the others: room in the queue, time, connections. Pages of other sites."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.schemas.tokens import MAX_BYTES, MAX_TOKENS
from tests.server.background import Background
from tests.server.conftest import MODEL, Live, StartServer, wait_until
from tests.server.fakes import MAX_MODEL_LEN

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PROMPT_TOKENS = len("user:Hi")


def ask(live: Live, path: str = CHAT, **fields: Any) -> httpx.Response:
    with live.http() as http:
        return http.post(path, json=(VALID if path == CHAT else {"model": MODEL}) | fields)


def admission(live: Live) -> Any:
    return live.server._app.state.server.admission


def test_the_queue_is_bounded_by_tokens_too(start_server: StartServer) -> None:
    live = start_server(max_num_queued_tokens=2 * PROMPT_TOKENS)
    live.engine.stalled = True
    asking = [Background(lambda: ask(live, n=3)), Background(lambda: ask(live))]
    wait_until(lambda: live.engine.num_open == 4)
    assert admission(live).num_waiting_tokens == 2 * PROMPT_TOKENS
    response = ask(live)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["Retry-After"]) > 0
    with live.http() as http:
        assert 'admission_rejections_total{engine="0",model_name="fake-vlm",reason="queued_tokens"} 1.0' in (
            http.get("/metrics").text
        )
    never = ask(live, messages=[{"role": "user", "content": "x" * MAX_MODEL_LEN}]).json()["error"]
    assert never["code"] == "context_length_exceeded", "trying again would not help"
    live.engine.stalled = False
    assert [thread.wait().status_code for thread in asking] == [200, 200]
    assert ask(live, "/v1/completions", prompt="x" * 100).status_code == 200, "an empty queue takes any"
    wait_until(lambda: admission(live).num_waiting_tokens == admission(live).num_open == 0)


def test_open_requests_hold_so_many_bytes_of_pictures(start_server: StartServer) -> None:
    """In the engine, too. All choices share theirs; where none are held, any are taken."""
    live = start_server(max_picture_memory=100)  # bytes; a picture of the fake processor has 48
    live.engine.stalled = True

    def shown(*colors: str) -> httpx.Response:
        parts = [{"type": "image_url", "image_url": {"url": f"color:{color}"}} for color in colors]
        return ask(live, messages=[{"role": "user", "content": parts}], n=5)

    asking = [Background(lambda: shown("red", "red")), Background(lambda: shown("blue"))]
    wait_until(lambda: live.engine.num_open == 10)
    refused = shown("green")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "pictures_full")
    with live.http() as http:
        assert 'reason="picture_memory"} 1.0' in http.get("/metrics").text
    without = Background(lambda: ask(live, n=2))
    wait_until(lambda: live.engine.num_open == 12)
    live.engine.stalled = False
    assert [thread.wait().status_code for thread in (*asking, without)] == [200, 200, 200]
    live.engine.stalled = True
    asking = [Background(lambda: shown("red", "green", "blue")), Background(lambda: ask(live, n=2))]
    wait_until(
        lambda: live.engine.num_open == 7
    )  # too much is let in alone, and those without pictures beside it
    live.engine.stalled = False
    assert [thread.wait().status_code for thread in asking] == [200, 200]
    wait_until(lambda: admission(live)._picture_bytes == admission(live).num_open == 0)


def test_who_hung_up_counts_until_the_engine_has_heard_of_it(start_server: StartServer) -> None:
    """What was sent is still on its way: who hangs up at once could fill the memory behind a long step."""
    live = start_server(max_num_seqs=2, max_num_queued_reqs=0)
    live.engine.stalled, live.engine.unheard = True, []
    with live.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(CHAT, json=VALID | {"n": 2}, timeout=0.5)
    wait_until(lambda: len(live.engine.closed_early) == 2 and bool(live.engine.unheard))
    assert ask(live).json()["error"]["code"] == "queue_full"
    [(ids, callback)] = live.engine.unheard
    assert sorted(ids) == sorted(request.request_id for request in live.engine.requests)
    live.engine.stalled, live.engine.unheard = False, None
    callback()
    assert ask(live).status_code == 200


def test_prompts_that_no_queue_holds_are_refused_for_good(start_server: StartServer) -> None:
    """They would shut out everybody else, and be told to try again whenever the server is not idle."""
    live = start_server(max_num_queued_tokens=100)
    error = ask(live, "/v1/completions", prompt=["x" * 50, "y" * 51]).json()["error"]
    assert (error["code"], error["param"]) == ("too_many_tokens", "prompt")
    assert "101 tokens in 2 prompts; at most 100 can be queued" in error["message"]
    assert live.engine.requests == []
    for prompt in (["x" * 50, "y" * 50], "x" * 101):
        assert ask(live, "/v1/completions", prompt=prompt).status_code == 200


def test_a_prompt_waits_until_its_answer_begins(start_server: StartServer) -> None:
    live = start_server(max_num_queued_tokens=PROMPT_TOKENS)
    live.engine.answer = live.engine.says("x" * 100, pause=0.02)
    asking = Background(lambda: ask(live, n=2))
    wait_until(lambda: bool(admission(live).num_open) and not admission(live).num_waiting_tokens)
    assert ask(live, max_tokens=1).status_code == 200
    assert asking.is_alive()
    assert asking.wait().status_code == 200


def test_tokenizing_waits_in_the_same_queue_and_needs_no_engine(start_server: StartServer) -> None:
    live = start_server(max_num_seqs=1, max_num_queued_reqs=0)
    live.engine.stalled = True
    asking = Background(lambda: ask(live))
    wait_until(lambda: live.engine.num_open == 1)
    for path, fields in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        assert ask(live, path, **fields).json()["error"]["code"] == "queue_full"
    live.engine.stalled = False
    asking.wait()
    live.engine.state = "restarting"
    assert ask(live, "/tokenize", prompt="x").status_code == 200
    assert admission(live).num_open == 0


def called(id: str = "c", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_endless_texts_are_not_tokenized(live: Live) -> None:
    """However few its characters are: a rare one is a token for each of its bytes."""
    live.engine.processor.applied = ([], None)
    text = "\U00020000" * (MAX_BYTES // 4 + 1)
    messages = [{"role": "user", "content": text}]
    for fields in ({"prompt": text}, {"messages": messages}):
        error = ask(live, "/tokenize", **fields).json()["error"]
        assert error["param"] == min(fields)
        assert f"has {len(text) * 4} bytes of text; at most {MAX_BYTES}" in error["message"]
    assert live.engine.processor.applied == ([], None)


def test_as_many_tokens_are_told_as_are_taken_back(live: Live) -> None:
    error = ask(live, "/tokenize", prompt="x" * (MAX_TOKENS + 1)).json()["error"]
    assert error["param"] == "prompt"
    assert f"has {MAX_TOKENS + 1} tokens; at most {MAX_TOKENS}" in error["message"]
    tokens = ask(live, "/tokenize", prompt="x" * MAX_TOKENS).json()["tokens"]
    assert ask(live, "/detokenize", tokens=tokens).json() == {"prompt": "x" * MAX_TOKENS}


LONG = "x" * (MAX_BYTES + 1)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": LONG},
        {"role": "user", "content": [{"type": "text", "text": LONG}]},
        {"role": "user", "content": "x", "name": LONG},
        {"role": "assistant", "content": None, "refusal": LONG},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": LONG}]},
        {"role": "assistant", "tool_calls": [called(arguments=LONG)]},
        {"role": "assistant", "tool_calls": [called(id=LONG)]},
        {"role": "tool", "content": "x", "tool_call_id": LONG},
    ],
    ids=["text", "part", "name", "refusal", "refusal part", "arguments", "call", "called"],
)
def test_no_text_of_a_message_is_too_long_to_be_counted(live: Live, message: dict[str, Any]) -> None:
    """Whatever a template may print of it: tokenizing takes seconds, and gigabytes."""
    live.engine.processor.applied = ([], None)
    messages = [message, {"role": "user", "content": "x"}]
    error = ask(live, messages=messages).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert ask(live, "/tokenize", messages=messages).json()["error"]["param"] == "messages"
    assert live.engine.processor.applied == ([], None)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_before_its_first_token(
    start_server: StartServer, stream: bool
) -> None:
    live = start_server(request_timeout=0.3)
    live.engine.stalled = True
    response = ask(live, stream=stream)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "request_timeout"
    assert response.headers["x-should-retry"] == "false"
    wait_until(lambda: len(live.engine.closed_early) == 1 and admission(live).num_open == 0)
    assert admission(live).num_waiting_tokens == 0
    live.engine.stalled = False
    assert ask(live).status_code == 200


def test_a_request_that_takes_too_long_in_its_stream(start_server: StartServer) -> None:
    live = start_server(request_timeout=0.4)
    live.engine.answer = live.engine.says("x" * 200, pause=0.02)
    lines = [line for line in ask(live, stream=True, n=2).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert sum('"error"' in line for line in lines) == 1
    assert sum('"content":"x"' in line for line in lines) > 2
    wait_until(lambda: len(live.engine.closed_early) == 2 and admission(live).num_open == 0)


def test_pictures_count_towards_the_time(start_server: StartServer) -> None:
    live = start_server(request_timeout=0.2)
    live.media.delay = 5
    picture = {"type": "image_url", "image_url": {"url": "color:red"}}
    response = ask(live, messages=[{"role": "user", "content": [picture]}])
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    assert live.engine.requests == []
    tokenized = ask(live, "/tokenize", messages=[{"role": "user", "content": [picture]}])
    assert (tokenized.status_code, tokenized.json()["error"]["code"]) == (504, "request_timeout")
    assert admission(live).num_open == 0


def test_a_body_that_drips_is_cut(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.body.BODY_SECONDS", 0.2)
    address = urlsplit(live.url)
    with socket.create_connection((address.hostname, address.port), timeout=5) as drip:
        drip.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 1000\r\n\r\n{".encode()
        )
        answer = b""
        while part := drip.recv(4096):
            answer += part
    assert b" 408 " in answer.splitlines()[0]
    assert b'"request_timeout"' in answer


def preflight(http: httpx.Client, origin: str) -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    return http.options(CHAT, headers=headers)


def test_pages_of_named_origins_may_ask(start_server: StartServer) -> None:
    live = start_server(allowed_origins="https://a.example,https://b.example", api_key="k")
    with live.http() as http:
        for origin in ("https://a.example", "https://b.example"):
            allowed = preflight(http, origin)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == origin
            assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
            for key, status in (("k", 200), ("wrong", 401)):
                headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
                response = http.post(CHAT, json=VALID, headers=headers)
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == origin
                assert "X-Request-Id" in response.headers["access-control-expose-headers"]
        for origin in ("https://evil.example", "null", "https://a.example.evil.example"):
            denied = preflight(http, origin)
            assert denied.status_code == 400
            assert denied.json()["error"]["code"] == "forbidden_origin"
            assert origin in denied.json()["error"]["message"]
            assert "Origin" in denied.headers["vary"]
            assert "access-control-allow-origin" not in denied.headers
            response = http.post(CHAT, json=VALID, headers={"Origin": origin, "Authorization": "Bearer k"})
            assert "access-control-allow-origin" not in response.headers
