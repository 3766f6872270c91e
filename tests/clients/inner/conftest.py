"""What each client is given: where the server is, and a picture."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

CHART = Path(__file__).parents[3] / "docs" / "chart.png"


@pytest.fixture(scope="session")
def base_url() -> str:
    return os.environ["CLIENTS_BASE_URL"]


@pytest.fixture(scope="session")
def picture() -> str:
    """A PNG, base64."""
    return base64.b64encode(CHART.read_bytes()).decode()
