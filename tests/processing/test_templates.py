"""Which content chat templates take: a string, parts, or one part. None of it is lost."""

from __future__ import annotations

from processing.chat import ChatMessage, TextPart
from processing.processor import Processor
from tests.conftest import BuildCheckpoint


def test_system_messages_that_are_printed_stay_strings(tiny: BuildCheckpoint) -> None:
    # As Llama 3.2 Vision's template: lists for users, a plain string for the system.
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] | trim }}/"
        "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    chat = [ChatMessage("system", [TextPart(" be"), TextPart("brief ")]), ChatMessage("user", "hi")]
    assert processor.decode(processor.apply(chat).token_ids) == "be\nbrief/hi"


def test_no_part_of_a_system_message_is_lost(tiny: BuildCheckpoint) -> None:
    # As Gemma 3's and Mistral Small's templates: of a list, the first part is read.
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' and m['content'] is not string %}"
        "{{ m['content'][0]['text'] }}/{% elif m['content'] is string %}{{ m['content'] }}/"
        "{% else %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    chat = [ChatMessage("system", [TextPart("be"), TextPart("brief")]), ChatMessage("user", [TextPart("hi")])]
    assert processor.decode(processor.apply(chat).token_ids) == "be\nbrief/hi"


def test_templates_that_read_one_part_only_get_one(tiny: BuildCheckpoint) -> None:
    # As LLaVA-NeXT's with Mistral: system and assistant messages are lists of which the first part is read.
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}"
        "{% else %}{{ '<' + m['content'][0]['text'] + '>' }}{% endif %}{% endfor %}"
    )
    processor = Processor.from_pretrained(str(tiny("llama")), chat_template=template)
    chat = [
        ChatMessage("system", "brief"),
        ChatMessage("user", "hi"),
        ChatMessage("assistant", [TextPart("a"), TextPart("b")]),
    ]
    assert processor.decode(processor.apply(chat).token_ids) == "<brief>hi<a\nb>"
