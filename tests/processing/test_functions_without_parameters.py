"""A call that a grammar forces has no arguments where the function has none."""

from __future__ import annotations

from typing import Any

import pytest

from processing.tools.plain_chat import written_calls
from processing.tools.request import OutputRequest, Tool
from processing.tools.styles import HERMES
from tests.processing.test_tools import allows, support

ANY_OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("parameters", "takes_any"),
    [
        (None, False),
        ({}, False),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}, "required": [], "title": "Nothing"}, False),
        ({"type": "object", "properties": {}, "additionalProperties": True}, True),
        ({"type": "object", "patternProperties": {"^a$": {"type": "integer"}}}, True),
        ({"type": "object", "anyOf": [ANY_OBJECT]}, True),
        ({"$ref": "#/$defs/any", "$defs": {"any": ANY_OBJECT}}, True),
    ],
)
def test_no_arguments_are_invented(parameters: dict[str, Any] | None, takes_any: bool) -> None:
    plan = support("hermes").plan(OutputRequest(tools=(Tool("f", None, parameters),), mode="required"))
    assert allows(plan, written_calls([("f", "{}")], HERMES))
    assert allows(plan, written_calls([("f", '{"a": 1}')], HERMES)) is takes_any
