"""Tools and their calls, as a chat template sees them."""

from __future__ import annotations

import pytest

from processing.chat import ChatMessage, ContentPart, ImagePart, TextPart
from processing.errors import PromptError
from processing.processor import Processor
from processing.tools.plain_chat import with_tools_as_text
from processing.tools.request import OutputRequest, Tool
from processing.tools.styles import HERMES
from tests.conftest import BuildCheckpoint
from tests.models import picture


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


def test_half_an_emoji_in_arguments_is_no_error(tiny: BuildCheckpoint) -> None:
    """A model may write it, and clients send back what it wrote."""
    template = "{% for m in messages %}{{ m['tool_calls'][0]['function']['arguments']['a'] }}!{% endfor %}"
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
    prompt = processor.apply([ChatMessage("assistant", None, {"tool_calls": [call]})])
    assert processor.decode(prompt.token_ids) == "?!"


def test_messages_of_one_role_become_one_in_their_order() -> None:
    def system(content: str | list[ContentPart]) -> ChatMessage:
        return ChatMessage("system", content)

    a, b, c = (TextPart(text) for text in "abc")
    user = ChatMessage("user", "x")
    told = with_tools_as_text([system("a"), system("b"), user, system([a]), system("b")], (), HERMES)
    assert told == [system("a\n\nb"), user, system("a\n\nb")]
    told = with_tools_as_text([system("a"), system([b, c]), system("a"), system([]), system([b])], (), HERMES)
    assert told == [system([TextPart("a\n\nb"), TextPart("c\n\na\n\nb")])]
    seen = ImagePart(picture(0))
    told = with_tools_as_text([system([seen, a]), system([b]), system([seen]), system("c")], (), HERMES)
    assert told == [system([seen, TextPart("a\n\nb"), seen, c])]


@pytest.mark.parametrize("printed", ["{{ c['text'] }}", "{{ c['text'] | trim }}"])
@pytest.mark.parametrize(
    "said", ["Be brief.", [TextPart("Be brief.")], [TextPart("Be"), TextPart(" brief.")]]
)
def test_tools_and_a_system_message_are_apart_in_every_template(
    tiny: BuildCheckpoint, printed: str, said: str | list[TextPart]
) -> None:
    template = (
        "{% for m in messages %}{% for c in m['content'] %}" + printed + "{% endfor %}/{% endfor %}"
        "{{ '<|im_end|>' }}"
    )
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    plan = processor.tools.plan(OutputRequest(tools=(Tool("f"),), mode="auto"))
    prompt = processor.apply(plan.add_tools([ChatMessage("system", said), ChatMessage("user", "hi")]))
    assert "\n\nBe" in processor.decode(prompt.token_ids)
