"""Speculation over HTTP: what a client may ask, what it hears, and that its text is none the different."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from engine.config import MAX_STEPS, MAX_TOPK, SpeculativeConfig
from engine.messages import (
    EngineStats,
    GenerateRequest,
    RequestOutput,
    SpeculationStats,
    SpeculativeParams,
    TracedRound,
)
from server.schemas.chat import ChatRequest
from server.speculation import answer_metrics
from tests.server.conftest import MODEL, Live, StartServer
from tests.server.drafting import WRONG
from tests.server.test_status import samples

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
VALID = {"model": MODEL, "messages": USER}
TEXT = "Hello, world!"  # 13 tokens and the stop token: rounds of 4, 4, 4 and 2

BLOCK = {
    "num_spec_steps": 4,
    "num_draft_tokens": 14,
    "num_accepted_draft_tokens": 10,
    "mean_acceptance_length": 14 / 4,
    "draft_acceptance_rate": 10 / 14,
    "acceptance_histogram": [0, 1, 0, 3],
    "num_spec_tokens": 14,
    "compressor": None,
    "visual_tokens": 0,
    "draft_visual_tokens": None,
}


@pytest.fixture(autouse=True)
def _drafting(live: Live) -> None:
    live.engine.answer = live.engine.says(TEXT, step=4, drafts=True)


def ask(client: openai.OpenAI, *, speculative: dict[str, Any] | None = None, **fields: Any) -> Any:
    extra = {} if speculative is None else {"speculative": speculative}
    return client.chat.completions.create(**VALID, **fields, extra_body=extra)


def test_what_a_client_asks_reaches_the_engine(live: Live, client: openai.OpenAI) -> None:
    ask(client)
    ask(client, speculative={})
    ask(client, speculative={"enabled": False})
    asked = {"num_steps": 0, "topk": 2, "num_draft_tokens": 63, "trace": True}
    ask(client, speculative=asked | {"compressor": "pool"}, n=2)
    ask(client, speculative={"compressor": None})
    silent = SpeculativeParams()
    told = SpeculativeParams(num_steps=0, topk=2, num_draft_tokens=63, trace=True, compressor="pool")
    assert [request.speculative for request in live.engine.requests] == [
        *(silent, silent, SpeculativeParams(enabled=False), told, told, silent)
    ]


@pytest.mark.parametrize(
    ("speculative", "param", "code"),
    [
        ({"num_steps": 33}, "speculative.num_steps", "invalid_value"),
        ({"num_steps": -1}, "speculative.num_steps", "invalid_value"),
        ({"topk": 33}, "speculative.topk", "invalid_value"),
        ({"num_draft_tokens": 64}, "speculative.num_draft_tokens", "invalid_value"),
        ({"num_draft_tokens": 1.5}, "speculative.num_draft_tokens", "invalid_value"),
        ({"enabled": "yes"}, "speculative.enabled", "invalid_value"),
        ({"trace": 1}, "speculative.trace", "invalid_value"),
        ({"depth": 3}, "speculative.depth", "unknown_parameter"),
        ({"compressor": "prune"}, "speculative.compressor", "unsupported_parameter"),
        ({"compressor": "zip"}, "speculative.compressor", "invalid_value"),
        (True, "speculative", "invalid_value"),
    ],
)
def test_what_is_refused_is_named(
    live: Live, http: httpx.Client, speculative: Any, param: str, code: str
) -> None:
    response = http.post(CHAT, json=VALID | {"speculative": speculative})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert param in error["message"]
    assert live.engine.requests == []


def test_a_request_may_ask_for_what_a_server_may_allow() -> None:
    """The ranges are those of the engine's own settings."""
    for name, most in (("num_steps", MAX_STEPS), ("topk", MAX_TOPK), ("num_draft_tokens", 63)):
        lone = {"num_steps": 1, "topk": 1, "num_draft_tokens": 1}
        SpeculativeConfig(**lone | {name: most})
        ChatRequest.model_validate({"messages": USER, "speculative": {name: most}})
        with pytest.raises(ValueError, match=name):
            SpeculativeConfig(**lone | {name: most + 1})


def test_the_block_of_a_whole_answer(http: httpx.Client, client: openai.OpenAI) -> None:
    answer = http.post(CHAT, json=VALID).json()
    assert answer["metrics"] == {"speculative_decoding": BLOCK}
    assert "speculative_trace" not in answer
    parsed = ask(client)
    assert parsed.choices[0].message.content == TEXT
    assert parsed.metrics["speculative_decoding"] == BLOCK


def test_the_block_is_summed_over_choices(live: Live, client: openai.OpenAI) -> None:
    def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        step = 4 if request.sampling.choice_index else 2
        return live.engine.says(TEXT, step=step, drafts=True)(request)

    live.engine.answer = answer
    expected = {
        "num_spec_steps": 4 + 7,
        "num_draft_tokens": 28,
        "num_accepted_draft_tokens": 10 + 7,
        "mean_acceptance_length": 28 / 11,
        "draft_acceptance_rate": 17 / 28,
        "acceptance_histogram": [0, 1 + 7, 0, 3],
        "num_spec_tokens": 28,
    }
    expected = BLOCK | expected
    assert ask(client, n=2).metrics["speculative_decoding"] == expected
    *before, last = ask(client, n=2, stream=True)
    assert last.metrics["speculative_decoding"] == expected
    assert not any("metrics" in chunk.model_extra for chunk in before)


@pytest.mark.parametrize("include_usage", [False, True])
def test_the_block_of_a_stream_is_in_its_last_chunk(client: openai.OpenAI, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    *before, last = ask(client, stream=True, **options)
    assert last.metrics["speculative_decoding"] == BLOCK
    assert not any("metrics" in chunk.model_extra for chunk in before)
    assert bool(last.choices) is not include_usage


def test_without_a_round_counts_are_zero_and_ratios_null(client: openai.OpenAI) -> None:
    block = ask(client, speculative={"enabled": False}).metrics["speculative_decoding"]
    assert (block["mean_acceptance_length"], block["draft_acceptance_rate"]) == (None, None)
    assert (block["num_spec_steps"], block["acceptance_histogram"]) == (0, [])


def test_an_engine_that_says_nothing_is_not_quoted(live: Live, http: httpx.Client) -> None:
    live.engine.answer = live.engine.says(TEXT)
    assert "metrics" not in http.post(CHAT, json=VALID).json()
    assert '"metrics"' not in http.post(CHAT, json=VALID | {"stream": True}).text
    assert answer_metrics([SpeculationStats(num_spec_steps=1), None]) is None


def test_a_stop_string_leaves_the_last_word_of_the_engine(live: Live, client: openai.OpenAI) -> None:
    """It ends the request here, so the engine's last output is never heard; what came before it counts."""

    async def answer(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        for num_rounds, char in enumerate("abc", start=1):
            yield RequestOutput(
                request_id=request.request_id,
                token_ids=live.engine.processor.encode(char),
                speculation=SpeculationStats(num_spec_steps=num_rounds),
            )

    live.engine.answer = answer
    assert ask(client, stop="b").metrics["speculative_decoding"]["num_spec_steps"] == 2


def check_rounds(rounds: list[dict[str, Any]], token_ids: list[int]) -> None:
    """They spell ``token_ids``, and their positions say where."""
    for one in rounds:
        accepted = one["accepted"]
        path = [one["token_ids"][node] for node in accepted] + [one["bonus_token_id"]]
        assert token_ids[one["position"] :][: len(path)] == path
        assert [one["parents"][node] for node in accepted] == [-1, *accepted][: len(accepted)]
        assert len(one["tokens"]) == len(one["token_ids"]) == len(one["parents"])
    assert sum(len(one["accepted"]) + 1 for one in rounds) == len(token_ids)


def test_a_trace_of_a_whole_answer(live: Live, client: openai.OpenAI) -> None:
    answer = ask(client, speculative={"trace": True}, n=2)
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    token_ids = [*live.engine.processor.encode(TEXT), live.engine.processor.eos]
    rounds = answer.speculative_trace
    for index in range(2):
        check_rounds([one for one in rounds if one["index"] == index], token_ids)
    assert rounds[0] == {
        "index": 0,
        "position": 0,
        "token_ids": [WRONG, *token_ids[:3]],
        "tokens": [live.engine.processor.token_text(WRONG), "H", "e", "l"],
        "parents": [-1, -1, 1, 2],
        "accepted": [1, 2, 3],
        "bonus_token_id": token_ids[3],
        "bonus_token": "l",
    }


def test_a_trace_rides_with_the_text_that_it_explains(live: Live, client: openai.OpenAI) -> None:
    chunks = list(ask(client, speculative={"trace": True}, stream=True))
    traced = [chunk for chunk in chunks if "speculative_trace" in chunk.model_extra]
    assert [chunk.choices[0].delta.content for chunk in traced] == ["Hell", "o, w", "orld", "!"]
    rounds = [one for chunk in traced for one in chunk.speculative_trace]
    check_rounds(rounds, [*live.engine.processor.encode(TEXT), live.engine.processor.eos])


def test_a_round_whose_text_is_held_back_is_traced_at_once(client: openai.OpenAI) -> None:
    """'Hell' might begin the stop string; the text waits, the tree does not."""
    chunks = list(ask(client, speculative={"trace": True}, stream=True, stop="Hello, x"))
    first = next(chunk for chunk in chunks if "speculative_trace" in chunk.model_extra)
    assert not first.choices[0].delta.content
    assert first.speculative_trace[0]["position"] == 0
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == TEXT


def test_a_trace_only_for_those_who_asked(live: Live, http: httpx.Client) -> None:
    spoken = live.engine.answer

    async def always_traced(request: GenerateRequest) -> AsyncGenerator[RequestOutput, None]:
        one = TracedRound(token_ids=[1], parents=[-1], accepted=[], bonus_token_id=2)
        yield RequestOutput(request_id=request.request_id, token_ids=[], rounds=[one])
        async for output in spoken(request):
            yield output

    live.engine.answer = always_traced
    for stream in (False, True):
        assert "speculative_trace" not in http.post(CHAT, json=VALID | {"stream": stream}).text
    live.engine.answer = live.engine.says(TEXT)
    assert http.post(CHAT, json=VALID | {"speculative": {"trace": True}}).json()["speculative_trace"] == []


def test_the_packages_own_accumulation_of_a_stream(client: openai.OpenAI) -> None:
    extra = {"speculative": {"trace": True}}
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(**VALID, stream_options=options, extra_body=extra) as stream:
        final = stream.get_final_completion()
    assert isinstance(final, ChatCompletion)
    assert final.choices[0].message.content == TEXT
    assert final.usage is not None
    assert final.usage.completion_tokens == len(TEXT) + 1


def test_counters_and_gauges(start_server: StartServer) -> None:
    live = start_server()
    first = EngineStats(
        generation_tokens=9,
        spec_rounds=4,
        spec_draft_tokens=20,
        spec_accepted_tokens=5,
        spec_accepted_per_depth=[3, 2],
        draft_seconds=0.25,
        step_seconds=1.5,
    )
    again = EngineStats(
        spec_rounds=1,
        spec_draft_tokens=4,
        spec_accepted_tokens=3,
        spec_accepted_per_depth=[1, 1, 1],
        draft_seconds=0.5,
        step_seconds=0.5,
    )
    with live.http() as http:
        idle = samples(http)
        assert str(idle["specvlm:mean_acceptance_length"].value) == "nan"
        assert str(idle["specvlm:acceptance_rate"].value) == "nan"
        for stats in (first, first, EngineStats(), again):  # the third: the engine has gone and starts again
            live.engine.report(stats)
        found = {name.removeprefix("specvlm:"): sample.value for name, sample in samples(http).items()}
    assert found["spec_decode_num_drafts_total"] == 5
    assert found["spec_decode_num_draft_tokens_total"] == 24
    assert found["spec_decode_num_accepted_tokens_total"] == 8
    name = "spec_decode_num_accepted_tokens_per_pos_total"
    assert [found[f"{name}{{{position}}}"] for position in range(3)] == [4, 3, 1]
    assert found["draft_seconds_total"] == pytest.approx(0.75)
    assert found["engine_step_seconds_total"] == pytest.approx(2.0)
    assert found["acceptance_rate"] == pytest.approx(8 / 24)
    assert found["mean_acceptance_length"] == pytest.approx((8 + 5) / 5)
    assert found["tokens_per_second"] == pytest.approx(0.9)


def test_version_says_what_drafts(live: Live, http: httpx.Client, start_server: StartServer) -> None:
    limits = {
        "num_steps": 6,
        "topk": 4,
        "num_draft_tokens": 32,
        "compressors": ["auto", "none", "text_only", "pool"],
    }
    assert http.get("/version").json()["speculative"] == {"draft": "ngram"} | limits
    unloaded = start_server()
    unloaded.engine.info = None
    with unloaded.http() as http_of_it:
        assert http_of_it.get("/version").json()["speculative"] is None
