"""What clients tell about themselves: labels that change no answer, and come back in many events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL
from tests.server.test_errors import check_shape

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"input": "Hi"},
    "/v1/completions": {"prompt": "Hi"},
}
LABELS = {
    "/v1/chat/completions": (
        *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("reasoning_effort", "service_tier", "verbosity"),
    ),
    "/v1/responses": (
        *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"),
    ),
    "/v1/completions": ("user",),
}
MOST = {"k" * 63 + chr(65 + number): "v" * 512 for number in range(16)}


def ask(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    return http.post(path, json={"model": MODEL} | ENDPOINTS[path] | fields)


@pytest.mark.parametrize(("path", "field"), [(path, field) for path in LABELS for field in LABELS[path]])
def test_a_label_is_short(http: httpx.Client, path: str, field: str) -> None:
    assert ask(http, path, **{field: "x" * 512}).status_code == 200
    error = check_shape(ask(http, path, **{field: "x" * 513}), 400)
    assert error["param"] == field
    assert "at most 512 characters" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_metadata_is_bounded_as_at_openai(http: httpx.Client, path: str) -> None:
    assert ask(http, path, metadata=MOST).status_code == 200
    error = check_shape(ask(http, path, metadata=MOST | {"one": "more"}), 400)
    assert error["param"] == "metadata"
    assert "at most 16 items" in error["message"]
    error = check_shape(ask(http, path, metadata={"a": "x" * 513}), 400)
    assert error["param"] == "metadata.a"
    assert "at most 512 characters" in error["message"]
    error = check_shape(ask(http, path, metadata={"x" * 5000: "b"}), 400)
    assert "at most 64 characters" in error["message"], "the long key does not crowd it out"


def test_what_is_said_of_a_form_is_bounded(http: httpx.Client) -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "description": "x" * 100_001}
    error = check_shape(ask(http, "/v1/responses", text={"format": form}), 400)
    assert error["param"] == "text.format.description"
