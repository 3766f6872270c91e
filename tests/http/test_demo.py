"""The demo model as users meet it: the README's example as it stands, and held-out pictures over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from demo.build import build
from demo.evaluate import evaluate, evaluate_url
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
