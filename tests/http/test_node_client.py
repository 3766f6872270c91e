"""The official npm client, which we did not write, against a live server."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.http.conftest import LiveServer
from tests.models import TOKENS_PER_IMAGE, picture

FOLDER = Path(__file__).parent / "node"
INSTALLED = FOLDER / "node_modules" / "openai"


def data_url() -> str:
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not INSTALLED.exists(), reason="npm package openai is not installed: make node")
def test_npm_client_chats_about_a_picture(live_server: LiveServer) -> None:
    environment = os.environ | {"SPECVLM_BASE_URL": live_server.base_url, "SPECVLM_IMAGE": data_url()}
    result = subprocess.run(
        ["node", "chat.mjs"], cwd=FOLDER, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    whole, stream = seen["whole"], seen["stream"]
    assert stream["text"] == whole["text"] != ""
    assert stream["finishReason"] == whole["finishReason"]
    assert stream["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] > 0
    assert whole["usage"]["prompt_tokens"] > TOKENS_PER_IMAGE
    assert stream["chunks"] > 2
    assert seen["refusal"] == {"status": 400, "kind": "BadRequestError"}
