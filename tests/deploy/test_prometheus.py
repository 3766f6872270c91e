"""Alerts and dashboard against what they are for: Prometheus itself, scraping a live server."""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import BuildCheckpoint
from tests.deploy.conftest import API_KEY, Prometheus, program, prometheus
from tests.deploy.files import ALERTS, DOCKER, GUIDE, alert_rules, dashboard, dashboard_queries, metrics_in
from tests.golden.speculating import draft_folder
from tests.http.conftest import LiveServer, serve
from tests.http.test_live_openai import question
from tests.imports import ROOT

pytestmark = pytest.mark.program

HEADERS = {"Authorization": f"Bearer {API_KEY}"}


def ask(server: LiveServer, **body: Any) -> int:
    answer = httpx.post(f"{server.base_url}/chat/completions", json=body, headers=HEADERS, timeout=120)
    answer.read()
    return answer.status_code


def traffic(server: LiveServer) -> None:
    """A round of everything that a panel shows: pictures seen before, text that repeats, and mistakes."""
    messages = question("What is this?", 1)
    # The same token over and over: look-up's first drafts are right, whatever steps cost on this machine.
    same = {"logit_bias": {"7": 100}, "temperature": 0, "max_tokens": 40}
    assert ask(server, messages=messages, **same) == 200
    few = {"max_tokens": 4, "speculative": {"compressor": "pool"}}
    assert ask(server, messages=messages, stream=True, **few) == 200
    assert ask(server, messages=messages, nonsense=1) == 400
    assert ask(server, messages=messages, model="other") == 404


@pytest.fixture(scope="module")
def watched(tiny: BuildCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after some scrapes of a server that was asked this and that."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    model = tiny("llava")
    draft = str(draft_folder(model, None))
    with (
        serve(model, folder, "--draft", draft, "--api-key", API_KEY, "--served-model-name", "tiny") as server,
        prometheus(server.url.removeprefix("http://"), folder) as running,
    ):
        running.wait_for("specvlm:engine_up", 1)
        for _ in range(3):
            traffic(server)
            time.sleep(1.2)  # so that a scrape lies between, and rates have something to grow
        running.wait_for("sum(specvlm:request_success_total)", 6)
        yield running


def test_the_alerts_fire_when_they_should_and_are_quiet_when_they_should() -> None:
    for arguments in (["check", "rules", str(ALERTS)], ["test", "rules", "tests/deploy/alerts_test.yml"]):
        result = subprocess.run([program("promtool"), *arguments], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def test_the_configuration_that_is_shipped_is_understood() -> None:
    shipped = DOCKER / "prometheus" / "prometheus.yml"
    command = [program("promtool"), "check", "config", "--syntax-only", str(shipped)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_acceptance_rate_and_tokens_per_second_come_out_of_prometheus(watched: Prometheus) -> None:
    [target] = watched.get("targets")["activeTargets"]
    assert (target["health"], target["labels"]["job"]) == ("up", "specvlm"), target["lastError"]
    assert 0 < watched.value("max_over_time(specvlm:acceptance_rate[1m])") <= 1
    assert watched.value("max_over_time(specvlm:tokens_per_second[1m])") > 0
    assert watched.value("max_over_time(specvlm:mean_acceptance_length[1m])") > 1
    accepted = watched.value("specvlm:spec_decode_num_accepted_tokens_total")
    rounds = watched.value("specvlm:spec_decode_num_drafts_total")
    drafts = watched.value("specvlm:spec_decode_num_draft_tokens_total")
    assert 0 < accepted <= drafts
    trees = watched.value(
        "specvlm:spec_decode_tree_nodes_count - ignoring(le) specvlm:spec_decode_tree_nodes_bucket{le='0.0'}"
    )
    assert (trees, watched.value("specvlm:spec_decode_tree_nodes_sum")) == (rounds, drafts)


def test_every_query_of_the_dashboard_returns_data(watched: Prometheus) -> None:
    empty, unknown = {}, set()
    for panel, query in dashboard_queries():
        found = [float(sample["value"][1]) for sample in watched.query(query)]
        if not any(math.isfinite(value) for value in found):
            empty[f"{panel}: {query}"] = found
        unknown |= {name for name in metrics_in(query) if not watched.query(name)}
    assert (empty, unknown) == ({}, set())


def test_the_dashboard_tells_what_happened(watched: Prometheus) -> None:
    """Panels whose figure is known: three rounds of traffic, each with two answers and two mistakes."""
    queries = dict(dashboard_queries())
    finished = {s["metric"]["finished_reason"]: s for s in watched.query(queries["Answers per second"])}
    assert float(finished["length"]["value"][1]) > 0
    assert float(finished["error"]["value"][1]) == 0
    assert watched.value(queries["Engines"]) == 1
    assert 0 < watched.value(queries["Prefix cache"]) < 1
    assert 0 < watched.value(queries["Plain decoding"]) < 1
    assert 0 < watched.value(queries["Time spent drafting"]) < 1
    counts = {
        s["metric"]["status"]: s["value"][1] for s in watched.query("sum by (status) (http_requests_total)")
    }
    assert counts == {"2xx": "6", "4xx": "6"}


def test_the_questions_of_the_guide_have_answers(watched: Prometheus) -> None:
    [block] = re.findall(r"```promql\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    questions = [line for line in block.splitlines() if not line.startswith("#")]
    assert len(questions) >= 5
    for question_asked in questions:
        assert math.isfinite(watched.value(question_asked)), question_asked


def test_the_dashboards_variables_find_the_server(watched: Prometheus) -> None:
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
            selector, _, label = query.rpartition(", ")
            for name in ("job", "instance"):
                selector = selector.replace(f"${name}", ".*")
            assert [sample["metric"][label] for sample in watched.query(selector)], variable["name"]


def test_the_alerts_read_metrics_that_are_there(watched: Prometheus) -> None:
    rules = [rule for group in watched.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alert_rules()}
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]
    for rule in alert_rules():
        missing = [name for name in metrics_in(rule["expr"]) if not watched.query(name)]
        assert not missing, f"{rule['alert']} would never fire"
