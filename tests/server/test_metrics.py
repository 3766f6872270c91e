"""Metrics of HTTP and of the engine's choices; those of answers are in ``test_status``."""

from __future__ import annotations

from typing import Any

import pytest

from engine.messages import EngineStats, StepReport
from server.metrics import Metrics
from tests.server.conftest import MODEL, Live, StartServer

CHAT = "/v1/chat/completions"
LABELS = {"model_name": MODEL, "engine": "0"}

# What vLLM's own dashboards and alerts read, as of 0.32.
OF_VLLM = (
    *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"),
    *("request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket"),
    *("request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket"),
    *("request_decode_time_seconds_bucket", "request_inference_time_seconds_bucket"),
    *("request_prompt_tokens_bucket", "request_generation_tokens_bucket", "iteration_tokens_total_bucket"),
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
    *("prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total"),
    *("request_success_total", "prefix_cache_queries_total", "prefix_cache_hits_total"),
    *("mm_cache_queries_total", "mm_cache_hits_total", "spec_decode_num_drafts_total"),
    *("spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total"),
    "spec_decode_num_accepted_tokens_per_pos_total",
)


def metrics_of(live: Live) -> Metrics:
    found = live.server._app.state.server.metrics
    assert isinstance(found, Metrics)
    return found


def test_http_requests_are_counted_by_route_and_never_by_what_a_client_wrote(
    start_server: StartServer,
) -> None:
    live = start_server(api_key="k")
    with live.http(headers={"Authorization": "Bearer k"}) as http:
        assert http.get(f"/v1/models/{MODEL}").status_code == 200
        assert http.get("/v1/models/other").status_code == 404
        assert http.post(CHAT, json={"nonsense": 1}).status_code == 400
        assert http.get("/nowhere/at/all").status_code == 404
        assert http.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code == 401
        live.engine.state = "restarting"
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        assert http.post(CHAT, json=body).status_code == 503
        for quiet in ("/health", "/ready", "/metrics", "/page/app.js"):
            http.get(quiet)
    [family] = [f for f in metrics_of(live).registry.collect() if f.name == "http_requests"]
    counted = {
        (sample.labels["handler"], sample.labels["status"]): sample.value
        for sample in family.samples
        if sample.name == "http_requests_total"
    }
    assert counted == {
        ("/v1/models/{model_id:path}", "2xx"): 1,
        ("/v1/models/{model_id:path}", "4xx"): 1,
        (CHAT, "4xx"): 1,
        (CHAT, "5xx"): 1,
        ("none", "4xx"): 2,
    }


def test_a_bug_of_ours_is_counted_and_told_as_such(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = start_server()

    def broken(*_: Any) -> list[int]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(live.engine.processor, "encode", broken)
    with live.http() as http:
        assert http.post("/tokenize", json={"prompt": "x"}).status_code == 500
    labels = {"handler": "/tokenize", "status": "5xx"}
    registry = metrics_of(live).registry
    assert registry.get_sample_value("http_requests_total", labels) == 1
    assert "request_failed" in caplog.text


def test_whether_the_engine_answers(start_server: StartServer) -> None:
    live = start_server()
    registry = metrics_of(live).registry
    assert registry.get_sample_value("specvlm:engine_up", LABELS) == 1
    live.engine.state = "restarting"
    assert registry.get_sample_value("specvlm:engine_up", LABELS) == 0


def test_sizes_of_trees_and_rounds_without_one() -> None:
    metrics = Metrics("specvlm", MODEL)
    metrics.on_step(StepReport(outputs=[], stats=EngineStats(), tree_sizes=[0, 0, 5, 32]))
    metrics.on_step(StepReport(outputs=[], stats=EngineStats()))

    def bucket(le: str) -> float | None:
        return metrics.registry.get_sample_value("specvlm:spec_decode_tree_nodes_bucket", LABELS | {"le": le})

    assert (bucket("0.0"), bucket("6.0"), bucket("32.0")) == (2, 3, 4)
    total = metrics.registry.get_sample_value("specvlm:spec_decode_tree_nodes_sum", LABELS)
    assert total == pytest.approx(37)


def test_pictures_of_the_draft_are_counted_by_branch_and_survive_a_restart_of_the_engine() -> None:
    metrics = Metrics("specvlm", MODEL)
    for pictures, visual in (({"pool-5": 2}, 200), ({"pool-5": 3, "none": 1}, 400), ({"pool-5": 1}, 100)):
        stats = EngineStats(
            draft_pictures=pictures,
            draft_visual_tokens=visual,
            draft_kept_visual_tokens=visual // 5,
            draft_kv_bytes_saved=10 * visual,
        )
        metrics.on_step(StepReport(outputs=[], stats=stats))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"specvlm:{name}_total", LABELS | labels)

    assert (value("compressor_branch", branch="pool-5"), value("compressor_branch", branch="none")) == (4, 1)
    assert (value("visual_tokens"), value("draft_visual_tokens")) == (500, 100)
    assert value("draft_kv_bytes_saved") == 5000


def test_under_vllms_prefix_its_dashboards_find_their_names_and_labels() -> None:
    metrics = Metrics("vllm", MODEL)
    metrics.on_step(StepReport(outputs=[], stats=EngineStats(spec_accepted_per_depth=[1])))
    metrics.on_finished("stop")
    metrics.on_response("/v1/models", 200)
    labels: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    assert {f"vllm:{name}" for name in OF_VLLM} <= set(labels)
    assert all({"model_name", "engine"} <= labels[f"vllm:{name}"] for name in OF_VLLM)
    assert "finished_reason" in labels["vllm:request_success_total"]
    assert "position" in labels["vllm:spec_decode_num_accepted_tokens_per_pos_total"]
    assert labels["http_requests_total"] == {"handler", "status"}
    assert not [name for name in labels if name.startswith("specvlm")]


def test_speculation_that_an_error_ended_shows(live: Live) -> None:
    metrics = metrics_of(live)
    for failed in (True, False):  # a new engine may speculate again
        metrics.on_step(StepReport(outputs=[], stats=EngineStats(drafting_failed=failed)))
        assert metrics.registry.get_sample_value("specvlm:spec_decode_failed", LABELS) == float(failed)
