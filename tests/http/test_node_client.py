"""The official npm client, which we did not write, against a live server."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import LiveServer
from tests.models import TOKENS_PER_IMAGE, picture

FOLDER = Path(__file__).parent / "node"
INSTALLED = FOLDER / "node_modules" / "openai"


def data_url() -> str:
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not INSTALLED.exists(),
    reason="node, or its package openai, is not installed: make node",
)


def run(script: str, server: LiveServer) -> dict[str, Any]:
    """What a script in ``FOLDER`` printed."""
    environment = os.environ | {"SPECVLM_BASE_URL": server.base_url, "SPECVLM_IMAGE": data_url()}
    result = subprocess.run(
        ["node", script], cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@needs_node
def test_npm_client_chats_about_a_picture(live_server: LiveServer) -> None:
    seen = run("chat.mjs", live_server)
    whole, stream = seen["whole"], seen["stream"]
    assert stream["text"] == whole["text"] != ""
    assert stream["finishReason"] == whole["finishReason"]
    assert stream["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] > 0
    assert whole["usage"]["prompt_tokens"] > TOKENS_PER_IMAGE
    assert stream["chunks"] > 2
    assert seen["refusal"] == {"status": 400, "kind": "BadRequestError"}
