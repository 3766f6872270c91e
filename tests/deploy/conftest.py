"""Programs of the distribution, and Debian's Prometheus at work on a live server."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.files import DOCKER
from tests.http.conftest import free_port, stop

API_KEY = "key-of-the-test"
START_SECONDS = 60.0


def program(name: str) -> str:
    """Its path; the test skips where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed (Debian: apt install prometheus)")
    return path


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def query(self, query: str) -> list[dict[str, Any]]:
        """The samples of an instant query. Fails in Prometheus's own words if it cannot be run."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {query}"
        return answer["data"]["result"]

    def value(self, query: str) -> float:
        """Of the one sample, NaN where there is none."""
        found = self.query(query)
        assert len(found) <= 1, f"{len(found)} samples: {query}"
        return float(found[0]["value"][1]) if found else float("nan")

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def wait_for(self, query: str, least: float, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not (seen := self.value(query)) >= least:  # NaN is not enough
            assert time.monotonic() < deadline, f"{query} is {seen}, and not {least}"
            time.sleep(0.3)


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """Debian's, with our configuration and rules; only target, file of the key and rhythm differ."""
    binary = program("prometheus")
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    [job] = config["scrape_configs"]
    (folder / "api_key").write_text(API_KEY)
    job["authorization"]["credentials_file"] = str(folder / "api_key")
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for rules in config["rule_files"]:
        shutil.copy(DOCKER / "prometheus" / rules, folder)
    check = [program("promtool"), "check", "config", str(folder / "prometheus.yml")]
    checked = subprocess.run(check, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    port = free_port()
    command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:
        wait_ready(running, process, folder / "prometheus.log")
        yield running
    finally:
        stop(process)


def wait_ready(running: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{running.url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"Prometheus did not become ready:\n{log.read_text()[-2000:]}")
