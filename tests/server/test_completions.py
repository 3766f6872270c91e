"""``/v1/completions``, as the ``openai`` package sees it."""

from __future__ import annotations

import threading
from typing import Any, get_type_hints

import httpx
import openai
import pytest
from openai.types import completion_create_params as params

from engine.client import EngineDeadError
from server.schemas.completions import MAX_CHOICES, CompletionRequest
from tests.server.conftest import MODEL, Live
from tests.server.fakes import IMAGE_TEXT, MAX_MODEL_LEN

URL = "/v1/completions"
SAID = "Hello, world!"


def ask(client: openai.OpenAI, prompt: Any = "Hi", **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **fields)


def streamed(client: openai.OpenAI, prompt: Any = "Hi", **fields: Any) -> list[Any]:
    return list(ask(client, prompt, stream=True, **fields))


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)


def refused(http: httpx.Client, param: str, code: str | None = None, **fields: Any) -> str:
    response = http.post(URL, json={"model": MODEL, "prompt": "Hi"} | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert code is None or error["code"] == code
    return str(error["message"])


def test_every_field_of_the_package_is_known() -> None:
    assert set(CompletionRequest.model_fields) >= set(
        get_type_hints(params.CompletionCreateParamsNonStreaming)
    )


def test_whole_answer(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL
    assert [choice.text for choice in answer.choices] == [SAID]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, len(SAID) + 1)
    assert live.engine.requests[0].prompt.token_ids == live.engine.processor.encode("Hi")


@pytest.mark.parametrize("step", [1, 3, 100])
def test_stream_says_what_the_whole_answer_says(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says("naïve 👩‍🚀!", step=step)
    chunks = streamed(client, stream_options={"include_usage": True}, max_tokens=50)
    assert text_of(chunks) == ask(client, max_tokens=50).choices[0].text == "naïve 👩‍🚀!"
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    reasons = [c.finish_reason for chunk in chunks for c in chunk.choices]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) <= {None}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert all(chunk.usage for chunk in streamed(client, stream_options=options))


def test_a_prompt_is_a_text_or_token_ids_or_several_of_them(live: Live, client: openai.OpenAI) -> None:
    encode = live.engine.processor.encode
    for prompt, sent in (
        ("abc", [encode("abc")]),
        (["abc", "d"], [encode("abc"), encode("d")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ):
        live.engine.requests.clear()
        answer = ask(client, prompt)
        assert sorted(r.prompt.token_ids for r in live.engine.requests) == sorted(sent)
        assert [choice.index for choice in answer.choices] == list(range(len(sent)))
        assert answer.usage.prompt_tokens == sum(map(len, sent))


def test_several_prompts_are_answered_in_order_each_as_if_alone(live: Live, client: openai.OpenAI) -> None:
    def answer(request: Any) -> Any:
        text = live.engine.processor.decode(request.prompt.token_ids).upper()
        return live.engine.says(f"{text}{request.sampling.choice_index}", pause=0.002)(request)

    live.engine.answer = answer
    expected = ["A0", "A1", "B0", "B1", "C0", "C1"]
    whole = ask(client, ["a", "b", "c"], n=2, seed=5)
    assert [choice.text for choice in whole.choices] == expected
    chunks = streamed(client, ["a", "b", "c"], n=2)
    assert [text_of(chunks, index) for index in range(6)] == expected
    assert {request.sampling.seed for request in live.engine.requests[:6]} == {5}


def test_echo(live: Live, client: openai.OpenAI) -> None:
    assert ask(client, "Say: ", echo=True).choices[0].text == "Say: " + SAID
    assert text_of(streamed(client, "Say: ", echo=True)) == "Say: " + SAID
    ids = live.engine.processor.encode("né")
    texts = [choice.text for choice in ask(client, [ids, ids[:1]], n=2, echo=True).choices]
    assert texts == ["né" + SAID] * 2 + ["n" + SAID] * 2


def test_token_ids_are_echoed_off_the_event_loop(
    live: Live, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, threads = live.engine.processor.decode, []

    def decode(*given: Any, **how: Any) -> str:
        threads.append(threading.current_thread().name)
        return real(*given, **how)

    monkeypatch.setattr(live.engine.processor, "decode", decode)
    assert ask(client, [72, 105], echo=True).choices[0].text.endswith(SAID)
    assert [name.partition("_")[0] for name in threads] == ["prompt"]


def test_logprobs_in_their_older_shape(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("aé", step=3)
    [choice] = ask(client, logprobs=2).choices
    found = choice.logprobs
    assert found.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert found.token_logprobs == [-0.5] * 3
    assert found.text_offset == [0, 1, 1]
    assert all(token in top for token, top in zip(found.tokens, found.top_logprobs, strict=True))
    assert all(len(top) == 2 for top in found.top_logprobs)
    chunks = streamed(client, logprobs=0)
    told = [c.logprobs for chunk in chunks for c in chunk.choices if c.logprobs]
    assert [token for one in told for token in one.tokens] == found.tokens
    assert [offset for one in told for offset in one.text_offset] == found.text_offset


def test_offsets_are_those_of_the_text_that_is_told(live: Live, client: openai.OpenAI) -> None:
    """Special tokens that are not shown were counted in, by their names."""
    live.engine.answer = live.engine.says(f"a{IMAGE_TEXT}éb", step=2)
    [choice] = ask(client, logprobs=0).choices
    assert choice.text == "aéb"
    assert choice.logprobs.text_offset == [0, 1, 1, 1, 2]
    [shown] = ask(client, logprobs=0, extra_body={"skip_special_tokens": False}).choices
    assert shown.text == f"a{IMAGE_TEXT}éb"
    after = 1 + len(IMAGE_TEXT)
    assert shown.logprobs.text_offset == [0, 1, after, after, after + 1]


@pytest.mark.parametrize("step", [1, 3, 100])
def test_echo_with_logprobs_tells_of_the_prompt_too(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says("aé", step=step)
    [choice] = ask(client, "né", logprobs=2, echo=True).choices
    found = choice.logprobs
    assert choice.text == "néaé"
    assert found.tokens == ["n", "bytes:\\xc3", "bytes:\\xa9", "a", "bytes:\\xc3", "bytes:\\xa9"]
    assert found.token_logprobs == [None] + [-0.5] * 5
    assert found.text_offset == [0, 1, 1, 2, 3, 3]
    assert found.top_logprobs[0] is None
    assert all(token in top for token, top in zip(found.tokens[1:], found.top_logprobs[1:], strict=True))
    chunks = streamed(client, ["né", "x"], logprobs=2, echo=True, n=2)
    for index, text in enumerate(["néaé", "néaé", "xaé", "xaé"]):
        told = [c.logprobs for chunk in chunks for c in chunk.choices if c.logprobs and c.index == index]
        assert text_of(chunks, index) == text
        assert [token for one in told for token in one.tokens][-3:] == found.tokens[-3:]
        if index < 2:
            assert [at for one in told for at in one.text_offset] == found.text_offset
            assert [logprob for one in told for logprob in one.token_logprobs] == found.token_logprobs
    assert all(request.sampling.prompt_logprobs == 2 for request in live.engine.requests)
    ask(client, logprobs=2)
    assert live.engine.requests[-1].sampling.prompt_logprobs is None


def test_a_prompt_can_be_scored_and_not_answered(
    live: Live, client: openai.OpenAI, http: httpx.Client
) -> None:
    """As evaluations do that compare the likelihood of given answers."""
    answer = ask(client, "né", max_tokens=0, echo=True, logprobs=1)
    [choice] = answer.choices
    assert choice.text == "né"
    assert choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 0)
    chunks = streamed(client, "né", max_tokens=0, echo=True)
    assert text_of(chunks) == "né"
    assert chunks[-1].choices[0].finish_reason == "length"
    refused(http, "max_tokens", max_tokens=0)
    longest = ask(client, [5] * MAX_MODEL_LEN, max_tokens=0, echo=True, logprobs=1)
    assert longest.usage.prompt_tokens == MAX_MODEL_LEN
    refused(http, "prompt", prompt=[5] * (MAX_MODEL_LEN + 1), max_tokens=0, echo=True, logprobs=1)


def test_sixteen_tokens_are_the_default(live: Live, client: openai.OpenAI) -> None:
    for fields, expected in (({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": 20}, 20)):
        ask(client, **fields)
        assert live.engine.requests[-1].sampling.max_tokens == expected


def test_texts_begin_as_the_tokenizer_would(
    live: Live, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live.engine.processor, "encode", lambda text, bos: [1] * bos + [5])
    for fields, expected in (({}, [1, 5]), ({"extra_body": {"add_special_tokens": False}}, [5])):
        ask(client, **fields)
        assert live.engine.requests[-1].prompt.token_ids == expected


def test_stop_and_length(client: openai.OpenAI) -> None:
    [choice] = ask(client, stop=[", w", "zz"]).choices
    assert (choice.text, choice.finish_reason) == ("Hello", "stop")
    [choice] = ask(client, max_tokens=4).choices
    assert (choice.text, choice.finish_reason) == ("Hell", "length")


def test_speculation_is_told_as_for_chats(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says(SAID, step=4, drafts=True)
    trace = {"extra_body": {"speculative": {"trace": True}}}
    whole = ask(client, **trace)
    report = whole.model_extra["metrics"]["speculative_decoding"]
    assert report["num_spec_steps"] == len(whole.model_extra["speculative_trace"]) > 1
    chunks = streamed(client, **trace)
    assert chunks[-1].model_extra["metrics"]["speculative_decoding"] == report
    rounds = [one for chunk in chunks for one in chunk.model_extra.get("speculative_trace") or []]
    assert rounds == whole.model_extra["speculative_trace"]


def test_what_is_refused(live: Live, http: httpx.Client) -> None:
    refused(http, "suffix", "unsupported_parameter", suffix="x")
    refused(http, "best_of", "unsupported_parameter", best_of=2)
    refused(http, "logprobs", logprobs=21)
    refused(http, "n", "invalid_combination", prompt=["x"] * (MAX_CHOICES // 8 + 1), n=8)
    refused(http, "stream_options", stream_options={"include_usage": True})
    refused(http, "nonsense", "unknown_parameter", nonsense=1)
    for prompt, param in (
        ([], ""),
        ("", ""),
        ([""], ""),
        ([[]], "[0]"),
        ([[5], []], "[1]"),
        (["x", 5], "[1]"),
    ):
        refused(http, "prompt" + param, prompt=prompt)
    for prompt in ([99999], [-1], [1.5], [True], [["a"]], [1, "a"], None, {}, 7):
        response = http.post(URL, json={"model": MODEL, "prompt": prompt})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("prompt")
    assert "images" in refused(http, "prompt", prompt=f"x{IMAGE_TEXT}")
    assert "images" in refused(http, "prompt", prompt=[live.engine.processor.image])
    assert live.engine.requests == []


def refused_at(http: httpx.Client, prompt: Any) -> str:
    return str(http.post(URL, json={"prompt": prompt}).json()["error"]["param"])


def test_values_that_ask_for_nothing(http: httpx.Client) -> None:
    for fields in ({"suffix": ""}, {"suffix": None}, {"best_of": 1}, {"best_of": 2, "n": 2}, {"echo": False}):
        assert http.post(URL, json={"model": MODEL, "prompt": "Hi"} | fields).status_code == 200


def test_context_overflow_names_the_prompt(http: httpx.Client) -> None:
    for prompt in ("x" * MAX_MODEL_LEN, [5] * MAX_MODEL_LEN, ["x", "y" * 100_000]):
        assert str(MAX_MODEL_LEN) in refused(http, "prompt", "context_length_exceeded", prompt=prompt)
    refused(http, "prompt", "context_length_exceeded", max_tokens=MAX_MODEL_LEN)


def test_one_failing_prompt_fails_the_request_once(live: Live, http: httpx.Client) -> None:
    live.engine.answer = live.engine.rejects(EngineDeadError("secret"), after="x")
    body = {"model": MODEL, "prompt": ["a", "b"]}
    assert http.post(URL, json=body).json()["error"]["code"] == "engine_dead"
    text = http.post(URL, json=body | {"stream": True}).text
    assert text.count('"error"') == 1
    assert "[DONE]" not in text


def test_logprobs_of_prompts_that_would_fill_the_memory_are_refused(
    live: Live, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece for each choice: 4,000 tokens, 48 choices and 20 alternatives took 2.4 GB."""
    monkeypatch.setattr("server.answering.MAX_PROMPT_LOGPROBS", 3 * 5 * 4)
    assert len(ask(client, "abcde", logprobs=3, echo=True, n=3).choices) == 3
    with pytest.raises(
        openai.BadRequestError,
        match=r"72 log-probabilities .*; at most 60 can",
    ) as refused:
        ask(client, ["abcde", "f"], logprobs=3, echo=True, n=3)
    assert refused.value.code == "too_many_logprobs"
    assert len(ask(client, "abcde", logprobs=3, echo=True, n=3).choices) == 3


def test_an_answer_of_too_many_token_details_can_be_streamed(
    client: openai.OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept until it is whole: 128 choices of 8,000 tokens with 20 alternatives would fill gigabytes."""
    monkeypatch.setattr("server.generation.MAX_KEPT", 50)
    asked: dict[str, Any] = {"max_tokens": 10, "n": 3, "logprobs": 4}
    assert len(ask(client, "Hi", **asked | {"n": 1}).choices) == 1
    assert len(ask(client, "Hi", **asked | {"logprobs": None}).choices) == 3
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "Hi", **asked)
    assert refused.value.code == "too_many_logprobs"
    body = {"model": MODEL, "prompt": "Hi", "stream": True} | asked
    assert http.post(URL, json=body).text.endswith("data: [DONE]\n\n")
