"""Everything beside chat: models, tokens, health, keys, metrics, request ids, the OpenAPI document."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import EngineStats
from server.routes.page import PUBLIC_PATHS
from tests.server.conftest import MODEL, Live, StartServer
from tests.server.fakes import EOS_TEXT, IMAGE_TOKENS, MAX_MODEL_LEN

CHAT = "/v1/chat/completions"
VALID = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}

HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
    *("request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens"),
    *("request_generation_tokens", "iteration_tokens_total"),
)
GAUGES = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "tokens_per_second"),
    *("acceptance_rate", "mean_acceptance_length"),
)
COUNTERS = (
    *("prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total"),
    *("request_success_total", "admission_rejections_total", "num_preemptions_total"),
    *("prefix_cache_queries_total", "prefix_cache_hits_total"),
    *("mm_cache_queries_total", "mm_cache_hits_total", "draft_seconds_total", "engine_step_seconds_total"),
    *("spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total"),
    "spec_decode_num_accepted_tokens_total",
)


def samples(http: httpx.Client) -> dict[str, Any]:
    """Samples by name; those with more labels than usual also by ``name{value}``."""
    response = http.get("/metrics")
    assert response.status_code == 200
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found[sample.name] = sample
            for name in ("finished_reason", "reason", "position"):
                if name in sample.labels:
                    found[f"{sample.name}{{{sample.labels[name]}}}"] = sample
    return found


def test_models(client: openai.OpenAI, http: httpx.Client) -> None:
    [model] = client.models.list().data
    assert model.id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == MAX_MODEL_LEN
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_several_names_with_slashes(start_server: StartServer) -> None:
    live = start_server(served_model_name=["org/name", "alias"])
    with live.openai() as client:
        assert client.models.retrieve("org/name").id == "org/name"
        for name in ("org/name", "alias"):
            assert client.chat.completions.create(**VALID | {"model": name}).model == name


def test_tokenize_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"model": MODEL, "prompt": "né", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == 3
    assert answer["max_model_len"] == MAX_MODEL_LEN
    assert answer["token_strs"][0] == "n"
    back = http.post("/detokenize", json={"model": MODEL, "tokens": answer["tokens"]}).json()
    assert back == {"prompt": "né"}


def test_tokenize_a_chat(http: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": "color:red"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}, picture]}]
    answer = http.post("/tokenize", json={"messages": messages}).json()
    assert answer["count"] == len("user:Hi") + IMAGE_TOKENS
    assert "image" not in http.post("/tokenize", json={"messages": messages}).text


def test_detokenize_shows_special_tokens_and_refuses_nonsense(live: Live, http: httpx.Client) -> None:
    eos = live.engine.processor.eos
    assert http.post("/detokenize", json={"tokens": [eos]}).json() == {"prompt": EOS_TEXT}
    for tokens in ([-1], [2**40], [10_000], ["a"], None):
        response = http.post("/detokenize", json={"tokens": tokens})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tokens")


@pytest.mark.parametrize("address", ["/tokenize", "/detokenize"])
def test_token_addresses_refuse_as_all_others(http: httpx.Client, address: str) -> None:
    valid: dict[str, Any] = {"prompt": "x"} if address == "/tokenize" else {"tokens": []}
    for fields in ({"nonsense": 1}, {"messages": [{"role": "user", "content": "x"}], "nonsense": 1}):
        response = http.post(address, json=valid | fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] in ("nonsense", "messages", "prompt")
    body: dict[str, Any] = {"model": "other", "prompt": "x"} if address == "/tokenize" else {"tokens": []}
    assert http.post(address, json=body | {"model": "other"}).status_code == 404


def test_before_the_model_is_there(live: Live, http: httpx.Client) -> None:
    live.engine.state = "restarting"
    assert http.get("/health").json() == {"status": "alive"}
    response = http.get("/ready")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    live.engine.state = "ready"
    assert http.get("/ready").json() == {"status": "ready"}


def test_version(http: httpx.Client) -> None:
    assert http.get("/version").json()["version"]


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/metrics", "/version", "/v1/models", f"/v1/models/{MODEL}", "/"]
)
def test_head_is_get_without_a_body(live: Live, http: httpx.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == got.headers["Content-Type"]
    live.engine.state = "restarting"
    assert http.head("/ready").status_code == 503
    assert http.head("/v1/models/none").status_code == 404


def test_request_ids(http: httpx.Client, live: Live) -> None:
    response = http.post(CHAT, json=VALID, headers={"X-Request-Id": "abc"})
    assert response.headers["X-Request-Id"] == "abc"
    assert response.json()["id"] == "chatcmpl-abc"
    response = http.post(CHAT, json=VALID | {"request_id": "of-body"}, headers={"X-Request-Id": "abc"})
    assert response.headers["X-Request-Id"] == "of-body"
    first, second = (http.get("/version").headers["X-Request-Id"] for _ in range(2))
    assert first != second
    assert http.get("/version", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"
    assert http.get("/nowhere", headers={"X-Request-Id": "abc"}).headers["X-Request-Id"] == "abc"
    for _ in range(2):
        http.post(CHAT, json=VALID, headers={"X-Request-Id": "same"})
    ids = [request.request_id for request in live.engine.requests]
    assert len(set(ids)) == len(ids)


def test_no_cors_by_default(http: httpx.Client) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    response = http.options(CHAT, headers=headers)
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def addresses_of(live: Live) -> list[tuple[str, str]]:
    found = []
    for route in live.server._app.routes:
        for one in getattr(route, "routes", None) or getattr(
            getattr(route, "original_router", None), "routes", [route]
        ):
            found += [(method, one.path) for method in one.methods]
    return found


def test_every_address_but_probes_and_the_page_needs_a_key(start_server: StartServer, tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("third\n\nfourth\n")
    live = start_server(api_key="first,second", api_key_file=key_file)
    addresses = addresses_of(live)
    paths = {path for _, path in addresses}
    assert {CHAT, "/tokenize", "/metrics", "/openapi.json", "/health", "/v1/models"} <= paths
    spellings = ["/nowhere", "/health/", "//health", "/health/../metrics", "/%68ealth/x", "/HEALTH"]
    spellings += ["//", "/page", "/page/", "/page/nowhere.js", "/page/app.js/", "//page/app.js", "/ready/x"]
    spellings += ["/index.html", "/page/../metrics", "/page/%2e%2e/metrics", "/page/app.js%2f..%2fmetrics"]
    public = {"/health", "/ready", *PUBLIC_PATHS}
    with live.http() as http:
        for method, path in [*addresses, *(("GET", path) for path in spellings)]:
            if path in public:
                continue
            response = http.request(method, live.url + path)  # as it stands: not joined, not resolved
            assert response.status_code == 401, (method, path)
            if method != "HEAD":
                assert response.json()["error"]["code"] == "invalid_api_key"
        for path in public:
            assert http.get(path).status_code == 200, path
        for key in ("first", "second", "third", "fourth"):
            headers = {"Authorization": f"Bearer {key}"}
            assert http.get("/v1/models", headers=headers).status_code == 200
        for header in ("Bearer wrong", "Bearer", "Basic first", "first", "Bearer firs", b"Bearer \xff"):
            assert http.get("/v1/models", headers={"Authorization": header}).status_code == 401
    with live.openai(api_key="second") as client:
        assert client.chat.completions.create(**VALID).choices[0].message.content
    with live.openai(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_keys_that_are_not_ascii(start_server: StartServer) -> None:
    """As curl and most clients send them, in UTF-8, and as browsers and Python's libraries do, in Latin-1."""
    live = start_server(api_key=["s\xe9k\xe0", "\u5bc6\u94a5"])
    with live.http() as http:

        def status(key: bytes) -> int:
            return http.get("/v1/models", headers={"Authorization": b"Bearer " + key}).status_code

        assert status("s\xe9k\xe0".encode()) == status("s\xe9k\xe0".encode("latin-1")) == 200
        assert status("\u5bc6\u94a5".encode()) == 200
        assert {status(key) for key in (b"sek\xe0", b"s\xe9k", b"??", b"\xc6\xa5")} == {401}


def test_behind_a_proxy_that_strips_a_prefix(start_server: StartServer) -> None:
    live = start_server(root_path="/vlm", api_key="k")
    headers = {"Authorization": "Bearer k"}
    with live.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/v1/models").status_code == 401
        assert http.get("/v1/models", headers=headers).status_code == 200
        assert http.get("/openapi.json", headers=headers).json()["servers"] == [{"url": "/vlm"}]


def test_metrics_have_the_names_and_labels_of_vllm(live: Live, http: httpx.Client) -> None:
    http.post(CHAT, json=VALID)
    found = samples(http)
    for name in HISTOGRAMS:
        assert f"specvlm:{name}_bucket" in found, name
    for name in (*GAUGES, *COUNTERS):
        assert f"specvlm:{name}" in found, name
    for name, sample in found.items():
        if name.startswith("specvlm:"):
            assert sample.labels["model_name"] == MODEL
            assert sample.labels["engine"] == "0"


def test_another_prefix(start_server: StartServer) -> None:
    live = start_server(metrics_prefix="vllm")
    with live.http() as http:
        assert "vllm:num_requests_running" in samples(http)
        assert "specvlm:" not in http.get("/metrics").text


def test_metrics_of_requests(start_server: StartServer) -> None:
    live = start_server()
    live.engine.answer = live.engine.says("abcde", num_cached=3)
    with live.http() as http:
        http.post(CHAT, json=VALID)
        http.post(CHAT, json=VALID | {"max_tokens": 2, "stream": True})
        http.post(CHAT, json=VALID | {"n": 2, "stop": "c"})
        found = {name: sample.value for name, sample in samples(http).items()}
    assert found["specvlm:request_success_total{stop}"] == 3
    assert found["specvlm:request_success_total{length}"] == 1
    assert found["specvlm:time_to_first_token_seconds_count"] == 4
    assert found["specvlm:request_generation_tokens_sum"] == 6 + 2 + 3 + 3
    assert found["specvlm:inter_token_latency_seconds_count"] == 5 + 1 + 2 + 2
    assert found["specvlm:request_prompt_tokens_sum"] == 4 * len("user:Hi")
    assert found["specvlm:request_queue_time_seconds_sum"] == pytest.approx(0.2)
    assert found["specvlm:request_inference_time_seconds_sum"] == pytest.approx(1.0)
    assert found["specvlm:prompt_tokens_cached_total"] == 12


def test_counters_never_fall_when_an_engine_starts_again(start_server: StartServer) -> None:
    live = start_server()
    report = live.engine.report
    report(EngineStats(generation_tokens=10, num_running=2, num_waiting=1, kv_cache_usage=0.5), num_tokens=7)
    report(EngineStats(generation_tokens=15, mm_cache_hits=1))
    report(EngineStats(generation_tokens=4))
    with live.http() as http:
        found = {name: sample.value for name, sample in samples(http).items()}
    assert found["specvlm:generation_tokens_total"] == 19
    assert found["specvlm:mm_cache_hits_total"] == 1
    assert found["specvlm:num_requests_running"] == 0
    assert found["specvlm:iteration_tokens_total_count"] == 1
    assert found["specvlm:tokens_per_second"] == pytest.approx(1.9)


def test_the_openapi_document_describes_the_schemas(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    chat = document["paths"][CHAT]["post"]
    reference = chat["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
    assert {"messages", "temperature", "logit_bias", "stream_options"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False
    assert {"200", "4XX", "500", "503"} <= set(chat["responses"])
    assert "'422'" not in str(document["paths"])
    assert "text/event-stream" in chat["responses"]["200"]["content"]
    references = re.findall(r'"\$ref": ?"([^"]+)"', http.get("/openapi.json").text)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert "#/components/schemas/ChatCompletionChunk" in references
    assert set(references) <= known
