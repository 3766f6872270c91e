"""What is refused, with which status, in the OpenAI shape; and nothing of our insides in it."""

from __future__ import annotations

import gzip
import json
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.client import EngineDeadError, RequestRejectedError
from tests.server.conftest import MODEL, Live, StartServer, wait_until
from tests.server.fakes import MAX_MODEL_LEN

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def check_shape(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    if code is not None:
        assert error["code"] == code
    assert "Traceback" not in response.text
    return error


def refused(http: httpx.Client, status: int = 400, code: str | None = None, **fields: Any) -> dict[str, Any]:
    body = json.dumps(VALID | fields)  # json allows NaN and lone surrogates, httpx does not
    headers = {"Content-Type": "application/json"}
    return check_shape(http.post(CHAT, content=body, headers=headers), status, code)


def test_an_unknown_parameter_is_named(http: httpx.Client) -> None:
    error = refused(http, code="unknown_parameter", temprature=1)
    assert error["param"] == "temprature"
    assert "temprature" in error["message"]


def test_an_unknown_parameter_deep_inside_is_named(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x", "zoom": 1}]}]
    assert (
        refused(http, code="unknown_parameter", messages=messages)["param"] == "messages[0].content[0].zoom"
    )


@pytest.mark.parametrize(
    "fields", [{"k" * 100_000: 1}, {"logit_bias": {"k" * 100_000: 1}}], ids=["field", "token"]
)
def test_an_endless_name_is_not_sent_back(http: httpx.Client, fields: dict[str, Any]) -> None:
    error = refused(http, **fields)
    assert len(json.dumps(error)) < 1500
    assert "kkk" in error["param"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": float("inf")}, None),
        ({"temperature": float("nan")}, None),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.01}, "min_p"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"65": 101}}, "logit_bias.65"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": 7}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"request_id": "a b"}, "request_id"),
    ],
)
def test_bad_values_are_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str | None
) -> None:
    assert refused(http, **fields)["param"] == param


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stop": ["x"] * 20}, "at most 16 items"),
        ({"stop": "x" * 2000}, "at most 1024 characters"),
        ({"tool_choice": "sometimes"}, "'none', 'auto' or 'required'"),
        ({"messages": [{}]}, "Missing parameter: 'messages[0].role'."),
        ({"messages": [{"role": "user", "content": [{}]}]}, "parameter: 'messages[0].content[0].type'."),
        ({"tool_choice": {}}, "Missing parameter: 'tool_choice.type'."),
        ({"messages": ["x"]}, "Invalid value for 'messages[0]': Input should be an object"),
        ({"speculative": True}, "Invalid value for 'speculative': Input should be an object"),
        ({"logit_bias": []}, "Invalid value for 'logit_bias': Input should be an object"),
        ({"tool_choice": {"type": "x"}}, "'x' is not supported; expected one of: 'function'"),
        ({"chat_template_kwargs": {"mode": "x" * 2000}}, "at most 1024 characters"),
    ],
)
def test_complaints_are_about_what_was_sent(http: httpx.Client, fields: dict[str, Any], reason: str) -> None:
    """Of the kinds that a field takes, not about those that were not meant."""
    assert reason in refused(http, **fields)["message"]


def test_missing_messages(http: httpx.Client) -> None:
    assert (
        check_shape(http.post(CHAT, json={"model": MODEL}), 400, "missing_parameter")["param"] == "messages"
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b"[1]", 400),
        (b'{"a": NaN}', 400),
        (b'"\\ud800"', 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"9" * 100_000, 400),
    ],
)
def test_bodies_that_are_no_json_object(http: httpx.Client, body: bytes, status: int) -> None:
    response = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check_shape(response, status)


@pytest.mark.parametrize("headers", [{"Content-Type": "text/plain"}, {}])
def test_a_body_of_another_type(http: httpx.Client, headers: dict[str, str]) -> None:
    """Or of none: a browser lets any site send that."""
    response = http.post(CHAT, content=json.dumps(VALID), headers=headers)
    check_shape(response, 415, "unsupported_media_type")


def test_a_compressed_body(http: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error = check_shape(
        http.post(CHAT, content=gzip.compress(json.dumps(VALID).encode()), headers=headers), 415
    )
    assert "Content-Encoding" in error["message"]
    encodings = [(b"Content-Encoding", one) for one in (b"identity", b"gzip")]
    twice = [(b"Content-Type", b"application/json"), *encodings]
    check_shape(http.post(CHAT, content=json.dumps(VALID), headers=twice), 415)


@pytest.mark.parametrize("where", ["content", "name", "key"])
def test_lone_surrogates(http: httpx.Client, where: str) -> None:
    lone = "\ud800"
    messages = [{"role": "user", "content": "x"}]
    fields: dict[str, Any] = {
        "content": {"messages": [{"role": "user", "content": lone}]},
        "name": {"messages": messages, "user": lone},
        "key": {lone: 1},
    }[where]
    refused(http, **fields)


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_addresses_and_methods_that_are_not_there(http: httpx.Client) -> None:
    check_shape(http.get("/nowhere"), 404, "not_found")
    for path, allowed in ((CHAT, "POST"), ("/v1/models", "GET"), ("/health", "GET")):
        response = http.delete(path)
        check_shape(response, 405, "method_not_allowed")
        assert response.headers["Allow"] == allowed
    check_shape(http.post(CHAT + "/", json=VALID), 404, "not_found")


def test_a_body_that_is_too_large(start_server: StartServer) -> None:
    live = start_server(max_request_size="1KiB")
    with live.http() as http:
        error = check_shape(http.post(CHAT, json=VALID | {"user": "x" * 2000}), 413, "request_too_large")
        assert "more than 1024 bytes" in error["message"]
        chunks = (b" " * 500 for _ in range(10))
        check_shape(http.post(CHAT, content=chunks, headers={"Content-Type": "application/json"}), 413)
        assert http.post(CHAT, json=VALID).status_code == 200


def test_an_announced_size_is_enough_to_be_refused(live: Live) -> None:
    connection = HTTPConnection(urlsplit(live.url).netloc, timeout=5)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "999999999999")
    connection.endheaders(b"{")
    assert connection.getresponse().status == 413
    connection.close()


def test_context_overflow_names_both_numbers(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "x" * 300}]
    error = refused(http, code="context_length_exceeded", messages=messages)
    assert str(MAX_MODEL_LEN) in error["message"]
    assert str(len("user:") + 300) in error["message"]
    error = refused(http, code="context_length_exceeded", max_tokens=MAX_MODEL_LEN)
    assert str(MAX_MODEL_LEN + len("user:Hi")) in error["message"]


def test_a_context_is_full_to_its_last_token(http: httpx.Client) -> None:
    fits = [{"role": "user", "content": "x" * (MAX_MODEL_LEN - len("user:") - 2)}]
    assert http.post(CHAT, json=VALID | {"messages": fits, "max_tokens": 2}).status_code == 200
    refused(http, code="context_length_exceeded", messages=fits, max_tokens=3)
    full = [{"role": "user", "content": fits[0]["content"] + "x"}]
    assert http.post(CHAT, json=VALID | {"messages": full}).json()["usage"]["completion_tokens"] == 1
    refused(http, code="context_length_exceeded", messages=[full[0] | {"content": full[0]["content"] + "x"}])


def test_endless_texts_are_refused_before_they_are_tokenised(
    live: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.engine.processor, "apply", lambda *_: pytest.fail("tokenised"))
    for content in ("x" * 5000, [{"type": "text", "text": "x" * 2500}] * 2):
        error = refused(http, code="context_length_exceeded", messages=[{"role": "user", "content": content}])
        assert str(MAX_MODEL_LEN) in error["message"]


def test_pictures_that_cannot_be_had(http: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}
    refused(http, code="invalid_image_url", messages=[{"role": "user", "content": [picture]}])


def test_too_many_pictures(start_server: StartServer) -> None:
    live = start_server(limit_mm_per_prompt={"image": 1})
    picture = {"type": "image_url", "image_url": {"url": "color:red"}}
    with live.http() as http:
        refused(http, code="too_many_images", messages=[{"role": "user", "content": [picture] * 2}])
        refused(http, code="too_many_images", messages=[{"role": "user", "content": [picture] * 5000}])
    assert live.media.loaded == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestRejectedError("invalid_request", "no such thing"), 400, "invalid_request"),
        (RequestRejectedError("context_length_exceeded", "too long"), 400, "context_length_exceeded"),
        (RequestRejectedError("out_of_memory", "the picture is too large"), 400, "out_of_memory"),
        (RequestRejectedError("internal_error", "secret address 0x1"), 500, "internal_error"),
        (EngineDeadError("secret address 0x1"), 500, "engine_dead"),
        (RuntimeError("secret address 0x1"), 500, "internal_error"),
    ],
)
def test_what_the_engine_refuses_is_a_status_before_the_first_token(
    live: Live, http: httpx.Client, stream: bool, error: Any, status: int, code: str
) -> None:
    live.engine.answer = live.engine.rejects(error)
    assert "secret" not in refused(http, status, code, stream=stream)["message"]


def test_an_error_in_the_middle_of_a_stream(live: Live, client: openai.OpenAI, http: httpx.Client) -> None:
    live.engine.answer = live.engine.rejects(EngineDeadError("secret"), after="Hel")
    stream = client.chat.completions.create(**VALID, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Hel"]
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    assert caught.value.code == "engine_dead"
    lines = [line for line in http.post(CHAT, json=VALID | {"stream": True}).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in lines[-1]


def test_one_failing_choice_ends_all_of_them_once(live: Live, http: httpx.Client) -> None:
    def answer(request: Any) -> Any:
        if request.sampling.choice_index == 1:
            return live.engine.rejects(RequestRejectedError("invalid_request", "no"), after="x")(request)
        return live.engine.says("y" * 100, pause=0.01)(request)

    live.engine.answer = answer
    refused(http, 400, "invalid_request", n=3)
    wait_until(lambda: live.engine.num_open == 0)
    assert len(live.engine.closed_early) == 3
    response = http.post(CHAT, json=VALID | {"n": 3, "stream": True})
    assert response.text.count('"error"') == 1
    assert "[DONE]" not in response.text


def test_a_bug_of_ours_is_a_plain_500(live: Live, http: httpx.Client, monkeypatch: Any) -> None:
    monkeypatch.setattr(live.engine.processor, "apply", lambda *_: 1 / 0)
    response = http.post(CHAT, json=VALID, headers={"X-Request-Id": "mine"})
    error = check_shape(response, 500, "internal_error")
    assert "division" not in error["message"]
    assert response.headers["X-Request-Id"] == "mine"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELD_NAMES = ("messages", "stop", "logit_bias", "n", "tools", "stream_options", "seed", "metadata", "model")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.sampled_from(FIELD_NAMES), json_values, max_size=4))
def test_any_json_is_answered_or_refused(http: httpx.Client, fields: dict[str, Any]) -> None:
    body = json.dumps(VALID | fields)
    response = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    if response.status_code != 200:
        assert response.status_code in (400, 404)
        check_shape(response, response.status_code)


def test_null_is_as_if_a_field_were_left_out(live: Live, http: httpx.Client) -> None:
    """Many clients write all that they have, null for what nobody set."""
    nulls = ("cache_salt", "min_tokens", "ignore_eos", "skip_special_tokens", "priority", "temperature", "n")
    assert http.post(CHAT, json=VALID).status_code == 200
    asked = VALID | dict.fromkeys(nulls) | {"seed": 1, "speculative": {"enabled": None, "trace": None}}
    assert http.post(CHAT, json=asked).status_code == 200
    assert http.post(CHAT, json=VALID | {"seed": 1}).status_code == 200
    *_, first, second = live.engine.requests
    assert (first.sampling, first.speculative, first.cache_salt, first.priority) == (
        *(second.sampling, second.speculative, second.cache_salt, second.priority),
    )
    refused(http, messages=None)
