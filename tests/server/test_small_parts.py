"""Parts of the server that need no HTTP: logs, sampling defaults, names of parameters, counters."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from engine.messages import EngineInfo, SamplingParams
from server.errors import ApiError, parameter_name
from server.generation_config import recommended_sampling
from server.logs import configure_logging
from server.metrics import increase
from server.run import greeting
from server.sampling import SamplingDefaults, sampling_params
from server.schemas.chat import ChatRequest
from tests.server.conftest import MODEL, Live

SECRET = "a secret nobody may log"


@pytest.fixture
def json_logs() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    yield stream
    configure_logging("error", "json")


def test_logs_name_requests_and_hold_no_prompt(
    live: Live, http: httpx.Client, json_logs: io.StringIO
) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
    headers = {"X-Request-Id": "log-me", "Authorization": f"Bearer {SECRET}"}
    for more in ({}, {"stream": True}, {"nonsense": SECRET}):
        http.post("/v1/chat/completions", json=body | more, headers=headers)
    written = json_logs.getvalue()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [200, 200, 400]
    assert all(line["request_id"] == "log-me" for line in requests)
    assert SECRET not in written


def test_probes_and_parts_of_the_page_are_logged_for_debugging_alone(
    http: httpx.Client, json_logs: io.StringIO
) -> None:
    for path in ("/health", "/page/app.js", "/", "/page/nowhere.js"):
        http.get(path)
    lines = [json.loads(line) for line in json_logs.getvalue().splitlines()]
    levels = {line["path"]: line["level"] for line in lines if line["event"] == "request"}
    quiet = {"/health": "debug", "/page/app.js": "debug"}
    assert levels == quiet | {"/": "info", "/page/nowhere.js": "info"}


def test_what_a_client_made_long_is_not_logged_at_length(live: Live, json_logs: io.StringIO) -> None:
    with live.http() as http:
        assert http.request("X" * 20_000, "/" + "x" * 30_000).status_code == 404
    [line] = json_logs.getvalue().splitlines()
    logged = json.loads(line)
    assert (logged["method"], logged["path"]) == ("X" * 100, "/" + "x" * 99)


def test_libraries_log_in_the_same_way(json_logs: io.StringIO) -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("some.library").exception("it failed", extra={"color_message": "red"})
    line = json.loads(json_logs.getvalue())
    assert (line["event"], line["level"], line["logger"]) == ("it failed", "error", "some.library")
    assert "ValueError: inside" in line["exception"]
    assert "color_message" not in line


def request(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}]} | fields)


def of_model(defaults: SamplingDefaults) -> Callable[[ChatRequest, int], SamplingParams]:
    """``sampling_params`` of a model with these defaults and a context of 100 tokens."""
    info = EngineInfo(
        model="",
        family="",
        dtype="",
        device="",
        vocab_size=10,
        max_model_len=100,
        max_images=None,
        num_pages=1,
        page_size=16,
        load_seconds=0.0,
    )
    return lambda request, prompt_len: sampling_params(request, defaults, prompt_len, info)


def test_a_models_recommendation_stands_where_the_client_is_silent(tmp_path: Path) -> None:
    assert recommended_sampling(str(tmp_path)) == SamplingDefaults()
    config = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "max_new_tokens": 30}
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "min_p": None}))
    build = of_model(recommended_sampling(str(tmp_path)))
    silent = build(request(), 5)
    assert (silent.temperature, silent.top_p, silent.top_k) == (0.7, 0.8, 20)
    assert (silent.min_p, silent.repetition_penalty, silent.max_tokens) == (0, 1.05, 30)
    asked = build(request(temperature=0, top_p=1, top_k=-1, repetition_penalty=1, max_tokens=90), 5)
    assert (asked.temperature, asked.top_p, asked.top_k) == (0, 1, 0)
    assert (asked.repetition_penalty, asked.max_tokens) == (1, 90)


def test_do_sample_false_recommends_greedy_decoding(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9}')
    build = of_model(recommended_sampling(str(tmp_path)))
    assert build(request(), 5).temperature == 0
    assert build(request(temperature=0.5), 5).temperature == 0.5


def test_max_tokens_is_what_fits() -> None:
    build = of_model(SamplingDefaults())
    assert build(request(), 99).max_tokens == 1
    assert build(request(max_completion_tokens=40), 60).max_tokens == 40
    for prompt_len, fields in ((100, {}), (61, {"max_tokens": 40})):
        with pytest.raises(ApiError, match="maximum context length is 100 tokens"):
            build(request(**fields), prompt_len)


def test_names_of_parameters() -> None:
    body = {
        "temperature": 9,
        "stop": [1],
        "messages": [{"role": "user", "content": [{}, {"type": "text", "text": 1}]}],
        "response_format": {"type": "json_schema", "json_schema": {"schema": 1}},
    }
    assert parameter_name(("temperature",), body) == "temperature"
    assert parameter_name(("stop", "list[constrained-str]", 0), body) == "stop[0]"
    form = ("response_format", "json_schema", "json_schema")
    assert parameter_name((*form, "schema"), body) == "response_format.json_schema.schema"
    assert parameter_name((*form, "name"), body, missing=True) == "response_format.json_schema.name"
    assert parameter_name(("tools",), None, missing=True) == "tools"
    where = ("messages", 0, "user", "content", "list[tagged-union[A,B]]", 1, "text", "text")
    assert parameter_name(where, body) == "messages[0].content[1].text"


def test_increase_survives_a_reset() -> None:
    assert [increase(0, 5), increase(5, 5), increase(5, 9), increase(9, 2)] == [5, 0, 4, 2]


def test_the_example_at_start_has_a_place_for_a_key() -> None:
    assert "YOUR_KEY" not in greeting("http://localhost:8000", "m", has_key=False)
    assert "-H 'Authorization: Bearer YOUR_KEY'" in greeting("http://localhost:8000", "m", has_key=True)


FEW_FILES = """
import resource, sys
from server.run import serve
from server.settings import ServeSettings

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))

class Client:
    async def start(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        sys.exit(0 if soft == hard else f"{soft} files of {hard}")

serve(ServeSettings(), "model", Client(), [])
"""


def test_a_server_and_its_engine_may_open_as_many_files_as_the_system_allows() -> None:
    done = subprocess.run([sys.executable, "-c", FEW_FILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
