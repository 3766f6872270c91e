"""The demo model as users meet it: the README's example as it stands, and held-out pictures over HTTP."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest

from demo.build import build
from demo.evaluate import evaluate, evaluate_url
from demo.pictures import sample
from tests.http.conftest import LiveServer, serve
from tests.imports import ROOT

pytestmark = pytest.mark.network  # the first build fetches the language model


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("demo")
    with serve(build(), folder, "--served-model-name", "specvlm-demo") as server:
        yield server


def test_the_readme_example_gives_the_pasted_answer(demo_server: LiveServer) -> None:
    readme = (ROOT / "README.md").read_text()
    code, pasted = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL)[0]
    code = code.replace("http://127.0.0.1:8000/v1", demo_server.base_url)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == pasted


def test_held_out_pictures_are_answered_as_by_transformers(demo_server: LiveServer) -> None:
    """One sample a task, greedy in float32, each alone: the same words, so the same score."""
    over_http = evaluate_url(demo_server.base_url, samples=16, progress=False)
    reference = evaluate(build(), samples=16, batch=1, perplexity=False, progress=False)
    assert over_http["wrong"] == reference["wrong"]
    assert over_http["tasks"] == reference["tasks"]
    assert 0 < len(reference["wrong"]) < 16, "answers all wrong or all right would hide a fault"


def test_speculation_changes_no_word_and_says_what_it_did(demo_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=demo_server.base_url, api_key="unused", max_retries=0)
    drawn = sample(77, 0, "heldout", "describe")
    buffer = io.BytesIO()
    drawn.images[0].save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": drawn.turns[0][0]}]

    def ask(speculative: dict[str, Any], **options: Any) -> Any:
        return client.chat.completions.create(
            model="specvlm-demo",
            messages=[{"role": "user", "content": parts}],  # type: ignore[typeddict-item]
            max_tokens=100,
            extra_body={"speculative": speculative},
            **options,
        )

    for options in ({"temperature": 0}, {"temperature": 1, "seed": 5, "top_p": 0.9}):
        plain, drafted = ask({"enabled": False}, **options), ask({"trace": True}, **options)
        assert drafted.choices[0].message.content == plain.choices[0].message.content
        report = drafted.model_extra["metrics"]["speculative_decoding"]
        assert plain.model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] == 0
        assert report["num_spec_steps"] == len(drafted.model_extra["speculative_trace"]) > 0
        assert report["num_accepted_draft_tokens"] > 0
        chunks = list(ask({}, stream=True, stream_options={"include_usage": True}, **options))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == plain.choices[0].message.content
        assert "speculative_decoding" in chunks[-1].model_extra["metrics"]
    metrics = httpx.get(f"{demo_server.url}/metrics").text
    accepted = re.search(
        r"^specvlm:spec_decode_num_accepted_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE
    )
    assert accepted is not None
    assert float(accepted[1]) > 0
    assert httpx.get(f"{demo_server.url}/version").json()["speculative"]["draft"] == "eagle"


class Shape(pydantic.BaseModel):
    kind: Literal["circle", "square", "triangle"]
    sides: int = pydantic.Field(ge=0, le=4)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_form_is_kept_and_speculates(demo_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=demo_server.base_url, api_key="unused", max_retries=0)
    asked = {
        "model": "specvlm-demo",
        "messages": [{"role": "user", "content": "Describe a square as JSON."}],
        "response_format": Shape,
        "max_tokens": 60,
        "logprobs": True,
        "top_logprobs": 2,
    }
    for how in ({"temperature": 0}, {"temperature": 1.3, "seed": 5, "n": 3}):
        plain = client.chat.completions.parse(**asked, **how, extra_body={"speculative": {"enabled": False}})
        drafted = client.chat.completions.parse(**asked, **how)
        for one, other in zip(plain.choices, drafted.choices, strict=True):
            assert isinstance(one.message.parsed, Shape)
            assert other.message.content == one.message.content
            logprobs = [token.logprob for choice in (one, other) for token in choice.logprobs.content]
            half = len(logprobs) // 2
            assert logprobs[half:] == pytest.approx(logprobs[:half], abs=1e-3)
    assert drafted.model_extra["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 0


def test_a_model_that_knows_no_tools_calls_them(demo_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=demo_server.base_url, api_key="unused", max_retries=0)
    chat: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    asked = {"model": "specvlm-demo", "tools": [WEATHER], "temperature": 0, "max_tokens": 80}
    with client.chat.completions.stream(**asked, messages=chat, tool_choice="required") as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "Rain, 12 degrees."}
    chat += [choice.message, answer]
    after = client.chat.completions.create(**asked, messages=chat, tool_choice="none").choices[0]
    assert after.message.content
    assert after.message.tool_calls is None


def test_a_schema_that_cannot_be_kept_is_refused(demo_server: LiveServer) -> None:
    client = openai.OpenAI(base_url=demo_server.base_url, api_key="unused", max_retries=0)
    form = {"name": "f", "strict": True, "schema": {"type": "string", "pattern": "((("}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                model="specvlm-demo",
                messages=[{"role": "user", "content": "Hi"}],
                response_format={"type": "json_schema", "json_schema": form},
                stream=stream,
            )
        assert (caught.value.param, caught.value.code) == ("response_format", "invalid_grammar")
        assert "unclosed group" in caught.value.message
