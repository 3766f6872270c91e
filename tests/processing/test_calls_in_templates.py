"""Tools and their calls, as a chat template sees them."""

from __future__ import annotations

import pytest

from processing.chat import ChatMessage
from processing.errors import PromptError
from processing.processor import Processor
from tests.conftest import BuildCheckpoint


def test_tools_reach_the_template_as_objects(tiny: BuildCheckpoint) -> None:
    template = (
        "{{ tools[0]['function']['name'] }};{% for m in messages %}{% for c in m['tool_calls'] or [] %}"
        "{{ c['function']['arguments']['x'] }}{% endfor %}{% endfor %};{{ mode }}"
    )
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 42}'}}
    prompt = processor.apply(
        [ChatMessage("assistant", None, {"tool_calls": [call], "name": None})],
        template_kwargs={"tools": [{"type": "function", "function": {"name": "f"}}], "mode": "fast"},
    )
    assert processor.decode(prompt.token_ids) == "f;42;fast"


@pytest.mark.parametrize("arguments", ["[" * 5000, '{"a":' * 900 + "1" + "}" * 900])
def test_arguments_of_endless_depth_are_refused(arguments: str, tiny: BuildCheckpoint) -> None:
    template = "{% for m in messages %}{{ m['tool_calls'] }}{% endfor %}"
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(PromptError, match="nested too deeply"):
        processor.apply([ChatMessage("assistant", None, {"tool_calls": [call]})])
