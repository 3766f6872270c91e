"""Dockerfile, compose file and dashboard, as far as files can be judged by looking at them."""

from __future__ import annotations

import fnmatch
import itertools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from server.run import LAST_WORDS_SECONDS
from server.settings import ENV_PREFIX, ServeSettings
from tests.deploy.files import DASHBOARD, compose, dashboard
from tests.imports import PACKAGES, ROOT

PROFILES = ("gpu", "cpu")
SERVERS = ("server", "demo")


def test_the_compose_file_follows_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, "docker-compose.yml"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.program
@pytest.mark.parametrize("profile", PROFILES)
def test_docker_understands_the_compose_file(profile: str) -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"]).returncode:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "--profile", profile, "config", "--quiet"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.program
def test_the_dockerfile_is_clean() -> None:
    path = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if path is None:
        pytest.skip("hadolint has no wheel for this machine")
    result = subprocess.run([path, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def services(profile: str) -> dict[str, Any]:
    found = compose()["services"]
    assert all("profiles" in service for service in found.values())
    return {name: service for name, service in found.items() if profile in service["profiles"]}


@pytest.mark.parametrize(("profile", "server"), list(zip(PROFILES, SERVERS, strict=True)))
def test_each_profile_starts_one_server_under_the_name_that_prometheus_asks(
    profile: str, server: str
) -> None:
    started = services(profile)
    assert set(started) == {server, "prometheus", "grafana"}
    assert started[server]["networks"]["default"]["aliases"] == ["specvlm"]
    assert bool(started[server].get("deploy")) == (profile == "gpu")


@pytest.mark.parametrize("name", SERVERS)
def test_the_servers_get_settings_that_exist_and_time_to_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing set, Compose passes empty values on: they must mean what no value means."""
    service = compose()["services"][name]
    for variable, value in service["environment"].items():
        default = value.partition(":-")[2].removesuffix("}") if value.startswith("${") else value
        if variable.startswith(ENV_PREFIX):
            monkeypatch.setenv(variable, default)
    settings = ServeSettings()
    assert settings.api_keys() == []
    assert (
        float(service["stop_grace_period"].removesuffix("s")) > settings.shutdown_timeout + LAST_WORDS_SECONDS
    )


def test_nothing_is_published_beyond_this_host_unless_asked() -> None:
    for name, service in compose()["services"].items():
        for port in service["ports"]:
            assert port.removeprefix("${BIND_ADDRESS:-").startswith("127.0.0.1"), f"{name} {port}"
            assert "BIND_ADDRESS" not in port or name in SERVERS
        assert service["cap_drop"] == ["ALL"], name
        assert "latest" not in service["image"], name
        assert ":" in service["image"], name


def test_the_build_context_holds_the_packages_and_no_more() -> None:
    """``.dockerignore`` shuts everything out, then lets in what an image is made of."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    ours = {package for package in PACKAGES if package != "tests"}
    assert {p for p in ours for pattern in installed["include"] if fnmatch.fnmatch(p, pattern)} == ours
    assert ours <= let_in
    files = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE", "docker/healthcheck.py"}
    assert let_in == ours | files
    assert all((ROOT / name).exists() for name in let_in)


def test_the_dashboards_panels_are_named_apart_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels), 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart or above, (one, other)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["type"] == "row" or panel["description"], panel["title"]


def test_grafana_finds_the_dashboard_where_compose_puts_it() -> None:
    mounts = dict(volume.split(":")[:2] for volume in compose()["services"]["grafana"]["volumes"])
    home = Path(compose()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    [source] = [host for host, inside in mounts.items() if Path(inside) == home.parent]
    assert (ROOT / source / home.name).samefile(DASHBOARD)
    provider = (ROOT / "docker" / "grafana" / "provisioning" / "dashboards" / "specvlm.yml").read_text()
    assert f"path: {home.parent}\n" in provider
    datasource = ROOT / "docker" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    [variable] = [v for v in dashboard()["templating"]["list"] if v["type"] == "datasource"]
    assert f"uid: {variable['current']['value']}\n" in datasource.read_text()
