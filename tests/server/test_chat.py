"""Answers, whole and streamed, as the ``openai`` package sees them."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from msgspec.structs import replace

from tests.server.conftest import MODEL, Live, StartServer
from tests.server.fakes import IMAGE_TOKENS

USER = [{"role": "user", "content": "Hi"}]
PROMPT_TOKENS = len("user:Hi")
EMOJI_TEXT = "naïve 👩‍🚀 says: 你好!"


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**({"model": MODEL, "messages": USER} | fields))


def streamed(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return list(ask(client, stream=True, **fields))


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def reasons_of(chunks: list[Any], index: int = 0) -> list[str]:
    return [
        c.finish_reason for chunk in chunks for c in chunk.choices if c.index == index and c.finish_reason
    ]


def test_whole_answer(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None


def test_usage_counts_the_stop_token_which_is_not_shown(client: openai.OpenAI) -> None:
    usage = ask(client).usage
    assert usage.prompt_tokens == PROMPT_TOKENS
    assert usage.completion_tokens == len("Hello, world!") + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_cached_tokens_are_reported(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("x", num_cached=5)
    assert ask(client).usage.prompt_tokens_details.cached_tokens == 5


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_stream_says_what_the_whole_answer_says(live: Live, client: openai.OpenAI, step: int) -> None:
    live.engine.answer = live.engine.says(EMOJI_TEXT, step=step)
    assert ask(client).choices[0].message.content == EMOJI_TEXT
    chunks = streamed(client)
    assert text_of(chunks) == EMOJI_TEXT
    assert reasons_of(chunks) == ["stop"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_in_a_stream_only_if_asked_for(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in streamed(client))
    *before, last = streamed(client, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in before)
    assert last.choices == []
    assert last.usage.completion_tokens == len("Hello, world!") + 1


def test_usage_in_every_chunk(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [chunk.usage.completion_tokens for chunk in streamed(client, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == len("Hello, world!") + 1
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, stream=True, stream_options={"continuous_usage_stats": True})
    assert caught.value.param == "stream_options.continuous_usage_stats"


def test_the_fingerprint_is_that_of_the_model(live: Live, client: openai.OpenAI) -> None:
    [first] = {ask(client).system_fingerprint, *(chunk.system_fingerprint for chunk in streamed(client))}
    assert live.engine.info is not None
    live.engine.info = replace(live.engine.info, dtype="bfloat16")
    try:
        assert ask(client).system_fingerprint != first
    finally:
        live.engine.info = replace(live.engine.info, dtype="float32")


async def test_async_client_streams(live: Live) -> None:
    async with live.async_openai() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        assert text_of([chunk async for chunk in stream]) == "Hello, world!"


def test_length_is_a_reason(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, max_completion_tokens=4)
    assert answer.choices[0].message.content == "Hell"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4


def test_an_incomplete_character_at_the_end_is_shown_as_such(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("a👩")
    assert ask(client, max_tokens=3).choices[0].message.content == "a\ufffd"
    assert text_of(streamed(client, max_tokens=3)) == "a\ufffd"


@pytest.mark.parametrize("step", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("world", "Hello, "),
        ([", wor", "zzz"], "Hello"),
        (["zzz", "o", "ell", "d!"], "H"),
        (["!", "absent", "x", "y"], "Hello, world"),
        (["world!?"], "Hello, world!"),
    ],
)
def test_stop_strings_however_the_text_is_cut(
    live: Live, client: openai.OpenAI, step: int, stop: Any, expected: str
) -> None:
    live.engine.answer = live.engine.says("Hello, world!", step=step)
    assert ask(client, stop=stop).choices[0].message.content == expected
    chunks = streamed(client, stop=stop)
    assert text_of(chunks) == expected
    assert reasons_of(chunks) == ["stop"]


def test_a_stop_string_ends_the_work_of_the_engine(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("one two " * 20, finish_reason="length")
    answer = ask(client, stop=" two")
    assert answer.choices[0].message.content == "one"
    assert answer.usage.completion_tokens == len("one two")
    assert len(live.engine.closed_early) == 1


def test_stop_strings_wait_for_min_tokens(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("a.b.c.d")
    answer = ask(client, stop=".", extra_body={"min_tokens": 3})
    assert answer.choices[0].message.content == "a.b"


def test_a_stop_string_can_be_kept(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, stop=",", extra_body={"include_stop_str_in_output": True})
    assert answer.choices[0].message.content == "Hello,"


def test_n_choices_share_a_seed_and_differ_by_index(live: Live, client: openai.OpenAI) -> None:
    texts = ["first", "the second one", "3"]

    def answer(request: Any) -> Any:
        return live.engine.says(texts[request.sampling.choice_index])(request)

    live.engine.answer = answer
    whole = ask(client, n=3)
    assert [choice.message.content for choice in whole.choices] == texts
    assert whole.usage.prompt_tokens == PROMPT_TOKENS
    assert whole.usage.completion_tokens == sum(len(text) + 1 for text in texts)
    assert len({request.sampling.seed for request in live.engine.requests}) == 1
    assert len({request.request_id for request in live.engine.requests}) == 3

    chunks = streamed(client, n=3)
    assert [text_of(chunks, index) for index in range(3)] == texts
    assert [reasons_of(chunks, index) for index in range(3)] == [["stop"]] * 3


def test_a_seed_is_drawn_where_none_is_given(live: Live, client: openai.OpenAI) -> None:
    ask(client)
    ask(client)
    ask(client, seed=-7)
    drawn = [request.sampling.seed for request in live.engine.requests]
    assert drawn[0] != drawn[1]
    assert drawn[2] == -7


def test_logprobs(live: Live, client: openai.OpenAI) -> None:
    live.engine.answer = live.engine.says("é!")
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == "é!"
    assert [len(entry.top_logprobs) for entry in content] == [2, 2, 2]
    assert content[2].token == "!"
    assert content[2].logprob == -0.5
    assert content[2].top_logprobs[0].token == "!"
    assert content[2].top_logprobs[1].logprob == -9999.0

    chunks = streamed(client, logprobs=True)
    entries = [e for chunk in chunks for c in chunk.choices if c.logprobs for e in c.logprobs.content]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "é!"
    assert all(entry.top_logprobs == [] for entry in entries)


def test_pictures_become_part_of_the_prompt(live: Live, client: openai.OpenAI) -> None:
    content = [
        {"type": "text", "text": "a"},
        {"type": "image_url", "image_url": {"url": "color:red", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "color:blue"}},
        {"type": "text", "text": "b"},
    ]
    answer = ask(client, messages=[{"role": "user", "content": content}])
    assert answer.usage.prompt_tokens == len("user:ab") + 2 * IMAGE_TOKENS
    assert answer.usage.prompt_tokens_details.image_tokens == 2 * IMAGE_TOKENS
    first, second = live.engine.requests[0].prompt.images
    assert first.hash != second.hash
    assert (first.start, second.start) == (len("user:a"), len("user:a") + IMAGE_TOKENS)


def test_an_assistants_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    message = ask(client).choices[0].message
    again = ask(client, messages=[*USER, message.model_dump(), {"role": "user", "content": "And?"}])
    assert again.usage.prompt_tokens > PROMPT_TOKENS
    ask(client, messages=[*USER, message])


def test_developers_are_systems_to_open_models(live: Live, client: openai.OpenAI) -> None:
    ask(client, messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *USER])
    token_ids = live.engine.requests[0].prompt.token_ids
    assert live.engine.processor.decode(token_ids) == "system:xuser:Hi"


def test_the_smallest_top_p_is_the_likeliest_token(live: Live, client: openai.OpenAI) -> None:
    ask(client, top_p=1e-12)
    assert live.engine.requests[0].sampling.top_p == 1e-6, "the engine takes nothing smaller"


def test_sampling_reaches_the_engine(live: Live, client: openai.OpenAI) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [7],
        "cache_salt": "s",
    }
    ask(
        client,
        temperature=0.5,
        top_p=0.9,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        logit_bias={"65": -100},
        max_tokens=9,
        seed=1,
        extra_body=extra,
    )
    request = live.engine.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.1, 0.2)
    assert sampling.repetition_penalty == 1.1
    assert sampling.logit_bias == {65: -100}
    assert (sampling.max_tokens, sampling.min_tokens, sampling.ignore_eos) == (9, 2, True)
    assert sampling.stop_token_ids == [7]
    assert sampling.logprobs is None
    assert request.cache_salt == "s"


def test_priorities_are_for_servers_that_were_told_so(
    live: Live, client: openai.OpenAI, start_server: StartServer
) -> None:
    with pytest.raises(openai.BadRequestError, match="--scheduling-policy priority") as caught:
        ask(client, extra_body={"priority": -3})
    assert (caught.value.param, live.engine.requests) == ("priority", [])
    ask(client, extra_body={"priority": 0})
    allowing = start_server(scheduling_policy="priority")
    with allowing.openai() as client_of_it:
        ask(client_of_it, extra_body={"priority": -3})
    assert allowing.engine.requests[0].priority == -3


def test_defaults_without_a_generation_config(live: Live, client: openai.OpenAI) -> None:
    ask(client)
    sampling = live.engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1, 1, 0, 1)
    assert sampling.max_tokens == 256 - PROMPT_TOKENS


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no"), ("", "no"), ([], "no"), ("said", "said"), ([{"type": "text", "text": "said"}], "said")],
)
def test_a_refusal_is_what_an_assistant_said_that_said_nothing_else(
    live: Live, client: openai.OpenAI, content: Any, told: str
) -> None:
    ask(client, messages=[*USER, {"role": "assistant", "content": content, "refusal": "no"}])
    messages, _ = live.engine.processor.applied
    assert [part.text for part in messages[1].parts] == [told]
