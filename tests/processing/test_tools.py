"""Calls of functions in every style: what is written, what the grammar allows, and what is read."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken

from processing.chat import ChatMessage
from processing.detokenizer import Detokenizer
from processing.tools.plain_chat import with_tools_as_text, written_calls
from processing.tools.reader import CallReader, Read
from processing.tools.request import ChoiceFormat, JsonFormat, OutputRequest, RegexFormat, Tool
from processing.tools.styles import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS, detect_style
from processing.tools.support import OutputPlan, ToolSupport
from processing.vocabulary import Vocabulary
from tests.tokenizer import tiny_tokenizer

STYLES = {"hermes": HERMES, "llama3_json": LLAMA3_JSON, "mistral": MISTRAL, "mistral [ARGS]": MISTRAL_ARGS}
TEMPLATES = {
    "hermes": '{{ tools }} <tool_call>\n{"name": <function-name>, "arguments": <args>}\n</tool_call>',
    "llama3_json": '{{ tools }} ipython {"name": function name, "parameters": dictionary} <|python_tag|>',
    "mistral": "{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS] [",
    "mistral [ARGS]": "{{ tools }} [TOOL_CALLS]name[ARGS]",
}
SPECIAL = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")

WEATHER = Tool(
    "get_weather",
    "The weather of a place.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
TIME = Tool("get_time")


def ll_tokenizer(special: tuple[str, ...]) -> tuple[LLTokenizer, dict[str, int]]:
    """The tiny one, with more special tokens."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    ids = {text: backend.token_to_id(text) for text in special}
    return LLTokenizer(backend.to_str(), eos_token=[backend.token_to_id("<|im_end|>")]), ids


LL, SPECIAL_IDS = ll_tokenizer(SPECIAL)
PLAIN_LL, _ = ll_tokenizer(())


def support(style: str, *, special: bool = True, takes_tools: bool = True) -> ToolSupport:
    find = SPECIAL_IDS.get if special else {}.get
    return ToolSupport(TEMPLATES[style], takes_tools=takes_tools, special_id=find)


def allows(plan: OutputPlan, text: str, *, special: bool = True) -> bool:
    """Whether the grammar allows exactly this answer."""
    assert plan.grammar is not None
    tokenizer = LL if special else PLAIN_LL
    matcher = LLMatcher(tokenizer, plan.grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text, parse_special=special)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def read(reader: CallReader, pieces: list[str]) -> tuple[str, list[tuple[str | None, str]]]:
    """Content, and (name, arguments) of every call, after checks that hold of any stream of deltas."""
    text, calls, ids = "", [], set()
    for delta in [*map(reader.feed, pieces), reader.finish()]:
        assert isinstance(delta, Read)
        text += delta.text
        for call in delta.calls:
            if call.name is not None:
                assert call.index == len(calls)
                assert call.id
                assert call.id not in ids
                ids.add(call.id)
                calls.append((call.name, ""))
            assert call.index == len(calls) - 1
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + call.arguments)
    return text, calls


ARGUMENTS = st.dictionaries(st.text(max_size=4), st.recursive(
    st.text(max_size=8) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
), max_size=3)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    style=st.sampled_from(sorted(STYLES)),
    calls=st.lists(st.tuples(st.sampled_from(["get_weather", "a.b-c_9"]), ARGUMENTS), min_size=1, max_size=3),
    before=st.sampled_from(["", "Let me see.", "One [moment], {please} <tool\n"]),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_calls_are_read_as_they_were_written_however_they_are_cut(
    style: str, calls: list[tuple[str, Any]], before: str, cuts: list[int]
) -> None:
    spelled = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls]
    before = before if STYLES[style].begin else ""
    text = before + written_calls(spelled, STYLES[style])
    ends = [0, *sorted(cuts), len(text)]
    for pieces in ([text], list(text), [text[a:b] for a, b in itertools.pairwise(ends)]):
        content, got = read(CallReader(STYLES[style], {"get_weather", "a.b-c_9"}), pieces)
        assert (content, got) == (before.rstrip(), spelled)


@pytest.mark.parametrize(
    ("style", "text", "content", "calls"),
    [
        ("hermes", "No call at all.  ", "No call at all.  ", []),
        ("hermes", '\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n', "", [("f", "{}")]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
        ("hermes", r'<tool_call>{"arguments": ["ü\\\udfff"], "name": "f"}', "", [("f", r'["ü\\\udfff"]')]),
        ("hermes", r'<tool_call>{"arguments": "\ud800", "name": "f"}', "", [("f", r"\ud800")]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call> Done.', "Done.", [("f", "{}")]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ', "", [("f", '{"a": ')]),
        ("hermes", "<tool_call>call f please</tool_call>", "<tool_call>call f please</tool_call>", []),
        ("hermes", "<tool_call>", "<tool_call>", []),
        ("hermes", "a <tool_call", "a <tool_call", []),
        ("hermes", '<tool_call>{"nam', '<tool_call>{"nam', []),
        ("hermes", '<tool_call>?<tool_call>{"name": "f", "arguments": {}}', "<tool_call>?", [("f", "{}")]),
        ("llama3_json", "Hello {there}", "Hello {there}", []),
        ("llama3_json", "; hello", "; hello", []),
        ("llama3_json", "  ;) sure", "  ;) sure", []),
        ("llama3_json", '{"colour": "red"} is JSON', '{"colour": "red"} is JSON', []),
        ("llama3_json", '{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),
        ("llama3_json", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": [1]}}', "",
         [("f", '{"a": [1]}')]),
        ("llama3_json", '{"name": "f", "parameters": {}};{"name": "f", "parameters": {"x": 2}}', "",
         [("f", "{}"), ("f", '{"x": 2}')]),
        ("mistral", 'Sure.[TOOL_CALLS] [{"name": "f", "arguments": {"a": "]}"}, "id": "123456789"}]', "Sure.",
         [("f", '{"a": "]}"}')]),
        ("mistral [ARGS]", '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}[TOOL_CALLS]f{}', "",
         [("f", '{"a": 1}'), ("f", "{}")]),
    ],
)  # fmt: skip
def test_what_models_write_besides(style: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in ([text], list(text)):
        assert read(CallReader(STYLES[style], {"f"}), pieces) == (content, calls)


@pytest.mark.parametrize("arguments", ["[NaN]", "-1e999", r'1, "name": "\ud800"'])
def test_what_cannot_be_sent_as_a_call_is_text(arguments: str) -> None:
    """Numbers that JSON does not have, and a name that is no text."""
    call = f'<tool_call>{{"name" : "f" , "id": 1, "arguments": {arguments}}}'
    assert read(CallReader(HERMES, {"f"}), [call]) == (call, [])


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(alphabet='<tool_call>/{}[]"name:arguments ,;\\nf', max_size=60),
    style=st.sampled_from(sorted(STYLES)),
)
def test_nonsense_never_fails_and_reads_alike_however_it_is_cut(text: str, style: str) -> None:
    assert read(CallReader(STYLES[style], {"f"}), [text]) == read(
        CallReader(STYLES[style], {"f"}), list(text)
    )


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("style", sorted(STYLES))
def test_grammars_of_every_style(style: str, special: bool) -> None:
    """With markers that are special tokens, and with markers that are text."""
    made = support(style, special=special)

    def plan(**how: Any) -> OutputPlan:
        return made.plan(OutputRequest(**{"tools": (WEATHER, TIME), "mode": "required"} | how))

    paris, now = ("get_weather", '{"city": "Paris", "days": 3}'), ("get_time", "{}")

    def says(plan: OutputPlan, *calls: tuple[str, str], before: str = "") -> bool:
        return allows(plan, before + written_calls(calls, STYLES[style]), special=special)

    required = plan()
    assert says(required, paris)
    assert says(required, now, paris, now)
    assert not says(required, ("get_weather", '{"days": 3}')), "city is required"
    assert not says(required, ("get_weather", '{"city": "Paris", "days": 0}'))
    assert not says(required, ("get_money", "{}"))
    assert not allows(required, "I would rather talk.")
    assert not says(plan(parallel=False), now, paris)
    named = plan(callable_names=frozenset({"get_time"}))
    assert says(named, now)
    assert not says(named, paris)
    auto = plan(mode="auto", parallel=False)
    assert says(auto, paris)
    assert not says(auto, now, paris)
    assert allows(auto, "I would rather\ntalk.")
    assert allows(auto, "")
    if STYLES[style].begin:
        assert says(auto, paris, before="Let me see. ")
    strict = Tool(WEATHER.name, None, WEATHER.parameters, strict=True)
    assert not says(made.plan(OutputRequest(tools=(strict,), mode="auto")), ("get_weather", "{}"))
    either = plan(
        mode="auto", format=JsonFormat({"type": "object", "properties": {"name": {"type": "string"}}})
    )
    assert allows(either, '{"name": "x"}')
    assert says(either, paris)
    assert not allows(either, "text")


def test_what_a_model_does_by_itself_costs_no_grammar() -> None:
    free = support("hermes").plan(OutputRequest(tools=(WEATHER,), mode="auto"))
    assert free.grammar is None
    assert free.tools == [WEATHER.as_json()]
    none = support("hermes").plan(OutputRequest(tools=(WEATHER,), mode="none"))
    assert (none.grammar, none.tools, none.reader()) == (None, None, None)
    plain = support("hermes").plan(OutputRequest())
    assert (plain.grammar, plain.tools, plain.reader()) == (None, None, None)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_random_writer_under_the_grammar_is_always_read_back(data: st.DataObject) -> None:
    """Random tokens that the grammar allows: whole calls are read, and their arguments obey the schema."""
    style = data.draw(st.sampled_from(sorted(STYLES)))
    schema = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "maximum": 99, "minimum": 0},
            "s": {"type": "string", "maxLength": 5},
        },
        "required": ["n", "s"],
        "additionalProperties": False,
    }
    tools = (Tool("f", None, schema), Tool("g", None, {}))
    plan = support(style).plan(OutputRequest(tools=tools[:1], mode="required", parallel=False))
    matcher = LLMatcher(LL, plan.grammar, log_level=0)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    tokens: list[int] = []
    while not matcher.is_stopped():
        allowed = np.flatnonzero(np.frombuffer(matcher.compute_logit_bias(), np.uint8))
        tokens.append(int(rng.choice(allowed)))
        assert matcher.consume_token(tokens[-1])
    text = LL.decode_str([t for t in tokens if t not in LL.eos_tokens])
    reader = plan.reader()
    assert reader is not None
    content, calls = read(reader, [text])
    assert content == ""
    ((name, arguments),) = calls
    assert name == "f"
    jsonschema.validate(json.loads(arguments), schema)


def test_a_schema_cannot_loosen_what_the_server_says() -> None:
    sneaky = {
        "type": "integer",
        "x-guidance": {"whitespace_pattern": ".*", "lenient": True},
        "uniqueItems": 5,
    }
    made = support("hermes")
    strict = made.plan(OutputRequest(format=JsonFormat(sneaky, strict=True)))
    assert LLMatcher(LL, strict.grammar, log_level=0).is_error(), "an unknown keyword, strictly"
    loose = made.plan(OutputRequest(format=JsonFormat({"type": "object"})))
    assert allows(loose, '{\n    "a": 1\n}')
    assert not allows(loose, "{" + " " * 40 + "}"), "white space without end"


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
def test_one_of_any_texts(choices: list[str]) -> None:
    plan = support("hermes").plan(OutputRequest(format=ChoiceFormat(tuple(choices))))
    assert all(allows(plan, text, special=False) for text in choices)
    other = "".join(choices) + "!"
    assert allows(plan, other, special=False) is (other in choices)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"[0-9]{3}", ["123"], ["12", "1234"]),
        (r"a/b\/c", ["a/b/c"], ["a/b"]),
        (r"\\/x", ["\\/x"], ["/x"]),
        ("a\nb\\\nc\\r?", ["a\nb\nc", "a\nb\nc\r"], ["a b\nc"]),
        (r'"(yes|no)" # not a comment', ['"yes" # not a comment'], ['"yes"']),
    ],
)
def test_regular_expressions_are_handed_on_as_they_are(pattern: str, good: list[str], bad: list[str]) -> None:
    plan = support("hermes").plan(OutputRequest(format=RegexFormat(pattern)))
    assert all(allows(plan, text) for text in good)
    assert not any(allows(plan, text) for text in bad)


def test_markers_that_are_special_tokens_reach_the_reader() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    made = ToolSupport("{{ tools }}[TOOL_CALLS]", takes_tools=True, special_id=backend.token_to_id)
    plan = made.plan(OutputRequest(tools=(TIME,), mode="auto"))
    text = '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]<|im_end|>'
    tokens = backend.encode(text, add_special_tokens=False).ids
    shown = Detokenizer(Vocabulary(backend), shown_ids=plan.shown_ids).feed(tokens)
    assert shown == text.removesuffix("<|im_end|>")
    reader = plan.reader()
    assert reader is not None
    assert read(reader, [shown]) == ("", [("get_time", "{}")])


def test_styles_are_told_from_templates() -> None:
    for name, template in TEMPLATES.items():
        assert detect_style(template) is STYLES[name]
    assert detect_style("<tool_call>{{ name }}<arg_key>") is None
    assert detect_style("<tool_call>\n<function=example>") is None
    assert detect_style("{{ messages }}") is None
    assert ToolSupport("", takes_tools=False, special_id={}.get, parser="mistral").style is MISTRAL
    assert not support("hermes", takes_tools=False).native


def test_tools_are_told_in_messages_where_the_template_knows_none() -> None:
    made = ToolSupport("{{ messages }}", takes_tools=False, special_id={}.get)
    plan = made.plan(OutputRequest(tools=(WEATHER,), mode="auto"))
    assert plan.tools is None
    assert plan.grammar is not None
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'},
    }
    chat = plan.add_tools(
        [
            ChatMessage("system", "Be brief."),
            ChatMessage("user", "Ulm?"),
            ChatMessage("assistant", None, {"tool_calls": [call]}),
            ChatMessage("tool", "rain", {"tool_call_id": "c"}),
            ChatMessage("tool", "wind", {"tool_call_id": "c"}),
            ChatMessage("user", "And?"),
        ]
    )
    assert [message.role for message in chat] == ["system", "user", "assistant", "user", "user"]
    assert json.dumps(WEATHER.as_json()) in str(chat[0].content)
    assert str(chat[0].content).endswith("Be brief.")
    assert read(CallReader(HERMES, set()), [str(chat[2].content)])[1] == [("get_weather", '{"city": "Ulm"}')]
    assert not any(message.extra for message in chat)
    assert "rain" in str(chat[3].content)
    assert "wind" in str(chat[3].content)
    assert with_tools_as_text([ChatMessage("user", "Hi")], (), HERMES) == [ChatMessage("user", "Hi")]
