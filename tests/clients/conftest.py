"""The demo model, served to clients that we did not write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.build import build
from tests.http.conftest import LiveServer, serve

NAMES = ("--served-model-name", "specvlm-demo", "--served-model-name", "another-name")


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with serve(build(), tmp_path_factory.mktemp("clients"), *NAMES) as server:
        yield server
