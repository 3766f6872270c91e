"""Completions and responses with a real engine, by the ``openai`` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.conftest import BuildCheckpoint
from tests.golden.reference import EPSILON, load_golden
from tests.http.conftest import LiveServer, serve
from tests.http.test_live_openai import client_of, data_url, metric, model_of, question, wait_idle
from tests.models import TOKENS_PER_IMAGE

TEXTS = ["What is this?", "red green blue", "a picture of a"]


def test_completions_are_what_transformers_generates(live_server: LiveServer, tiny: BuildCheckpoint) -> None:
    """Three prompts in one request, as texts and as token ids, whole and streamed."""
    golden = load_golden(tiny("llava"))
    prompts = [golden.ours.encode(text) for text in TEXTS]
    expected = []
    for ids in prompts:
        output = golden.model.generate(
            input_ids=torch.tensor([ids]),
            max_new_tokens=12,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        top = [logits[0].topk(2).values for logits in output.logits]
        assert min(float(a - b) for a, b in top) > EPSILON, "choose another prompt: this one is undecided"
        detokenizer = golden.ours.detokenizer(at_text_start=False)
        text = detokenizer.feed(output.sequences[0, len(ids) :].tolist()) + detokenizer.finish()
        expected.append(text)
    assert len(set(expected)) == 3
    client, model = client_of(live_server), model_of(live_server)
    settings: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": 12}
    for given in (TEXTS, prompts):
        whole = client.completions.create(prompt=given, **settings)
        assert [choice.text for choice in whole.choices] == expected
        chunks = list(client.completions.create(prompt=given, **settings, stream=True))
        pieces = [[c.text for k in chunks for c in k.choices if c.index == index] for index in range(3)]
        assert ["".join(one) for one in pieces] == expected
        assert whole.usage is not None
        assert whole.usage.prompt_tokens == sum(map(len, prompts))


def test_a_completion_cannot_claim_a_picture(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    with pytest.raises(openai.BadRequestError, match="images"):
        client.completions.create(model=model, prompt="What is <image>?")


def test_nul_is_a_character_like_others(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    for text in ("\0", "red\0green", "\0" * 100):
        chat = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=4, stop="\0"
        )
        assert chat.usage is not None
        assert chat.usage.completion_tokens > 0
        tokens = httpx.post(f"{live_server.url}/tokenize", json={"prompt": text}).json()["tokens"]
        prompt = httpx.post(f"{live_server.url}/detokenize", json={"tokens": tokens}).json()["prompt"]
        assert text in prompt


def test_clients_that_leave_while_they_wait_their_turn(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    body = {"prompt": "Go on.", "max_tokens": 450, "ignore_eos": True, "speculative": {"enabled": False}}
    with serve(tiny("llama"), tmp_path, "--max-num-seqs", "1") as server:
        with httpx.stream("POST", f"{server.base_url}/completions", json=body | {"stream": True}, timeout=60):
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{server.base_url}/completions", json=body | {"n": 4}, timeout=0.5)
        wait_idle(server)
        assert metric(server, "specvlm:kv_cache_usage_perc") == 0.0
        assert (
            httpx.post(f"{server.base_url}/completions", json={"prompt": "Hi"}, timeout=60).status_code == 200
        )


def test_a_response_says_what_a_chat_says(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    chat = client.chat.completions.create(
        model=model, messages=question("What is this?", 4), temperature=0, max_tokens=12
    )
    picture = {"type": "input_image", "image_url": data_url(4), "detail": "auto"}
    asked = [{"role": "user", "content": [picture, {"type": "input_text", "text": "What is this?"}]}]
    settings: dict[str, Any] = {"model": model, "temperature": 0, "max_output_tokens": 12, "input": asked}
    whole = client.responses.create(**settings)
    assert whole.output_text == chat.choices[0].message.content
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens > TOKENS_PER_IMAGE
    events = list(client.responses.create(**settings, stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert len(deltas) > 1
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_a_response_keeps_to_a_form(live_server: LiveServer) -> None:
    client, model = client_of(live_server), model_of(live_server)
    schema = {
        "type": "object",
        "properties": {"sides": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["sides"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "name": "shape", "schema": schema, "strict": True}
    answer = client.responses.create(model=model, input="A shape.", text={"format": form})
    assert 1 <= json.loads(answer.output_text)["sides"] <= 9
    function: Any = {"type": "function", "name": "count", "parameters": schema, "strict": True}
    answer = client.responses.create(model=model, input="A shape.", tools=[function], tool_choice="required")
    call = answer.output[0]
    assert call.type == "function_call"
    assert call.name == "count"
    assert 1 <= json.loads(call.arguments)["sides"] <= 9


def test_a_request_out_of_time_gives_its_pages_back(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    with serve(tiny("llama"), tmp_path, "--request-timeout", "0.5") as server:
        body = {"prompt": "Go on.", "max_tokens": 450, "ignore_eos": True, "speculative": {"enabled": False}}
        answer = httpx.post(f"{server.base_url}/completions", json={**body, "n": 64}, timeout=60)
        assert answer.status_code == 504, answer.text
        wait_idle(server)
        assert metric(server, "specvlm:kv_cache_usage_perc") == 0.0
        assert httpx.post(f"{server.base_url}/completions", json={"prompt": "Hi"}).status_code == 200


def test_a_conversation_has_the_tokens_that_its_chat_has(live_server: LiveServer) -> None:
    """Calls of earlier turns, too, which a template that knows no tools is told as text."""
    client, model = client_of(live_server), model_of(live_server)
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages: Any = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        {"role": "user", "content": "and?"},
    ]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    root = live_server.base_url.removesuffix("/v1")
    told = httpx.post(f"{root}/tokenize", json={"messages": messages}, timeout=60).json()
    assert answer.usage is not None
    assert told["count"] == answer.usage.prompt_tokens
