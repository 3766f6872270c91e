"""What is deployed, as data: the compose file, the dashboard's queries, the alerts."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tests.imports import ROOT

DOCKER = ROOT / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "specvlm.json"
ALERTS = DOCKER / "prometheus" / "alerts.yml"
GUIDE = ROOT / "docs" / "operating.md"
# With colons, as ours; those of Prometheus and of the process have none. Functions end in a bracket.
METRIC = re.compile(r"\b(?:specvlm:\w+|http_requests_total|process_\w+|up)\b(?!\()")


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def dashboard_queries() -> list[tuple[str, str]]:
    """(panel, query) with Grafana's variables as they are when everything is selected."""
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m")
            found.append((panel["title"], re.sub(r"\$(job|instance|model)\b", ".*", query)))
    return found


def alert_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def metrics_in(query: str) -> set[str]:
    return set(METRIC.findall(query))
