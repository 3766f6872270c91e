"""The official npm client's helpers, which read every answer into types of theirs or ours."""

from __future__ import annotations

import pytest

from tests.http.conftest import LiveServer
from tests.http.test_node_client import needs_node, run

pytestmark = [pytest.mark.network, needs_node]


def test_npm_client_parses_forms_tools_responses_and_completions(demo_server: LiveServer) -> None:
    seen = run("surface.mjs", demo_server)
    shapes = [seen["parsed"], seen["call"]["parsed"], seen["response"], seen["tool"]["parsed"]]
    assert all(shape["kind"] in ("circle", "square") for shape in shapes)
    assert all(isinstance(shape["red"], bool) for shape in shapes)
    assert seen["streamed"] == seen["parsed"] == seen["response"]
    assert (seen["call"]["name"], seen["tool"]["type"]) == ("draw", "function_call")
    assert seen["answered"]
    assert seen["text"] == seen["plain"] != ""
    assert seen["events"][0] == "response.created"
    assert seen["events"][-1] in ("response.completed", "response.incomplete")
    assert seen["completed"] == seen["completion"] != ""
