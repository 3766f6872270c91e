"""Masks along paths, trees of them, hostile grammars, the cache. Against a matcher that never goes back."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from engine.draft.candidates import Candidates
from engine.grammar import grammar as module
from engine.grammar.grammar import Grammar, GrammarCompiler, GrammarError, GrammarState
from engine.grammar.tree import fill_ahead, paths_of, prune
from tests.engine.test_verify import sequence_of, span_of
from tests.tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def ll_tokenizer() -> LLTokenizer:
    return LLTokenizer(TOKENIZER.backend_tokenizer.to_str(), eos_token=[EOS])


LL = ll_tokenizer()
JSON = 'start: %json {"type": "object", "properties": {"name": {"enum": ["circle", "circus"]}, "n": {}}}'


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def bits(mask: module.Mask) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def fresh_mask(text: str, tokens: list[int]) -> set[int] | None:
    """What may follow ``tokens``, by a matcher that never goes back; ``None`` if they are not allowed."""
    matcher = LLMatcher(LL, text, log_level=0)
    if matcher.try_consume_tokens(tokens) < len(tokens):
        return None
    return {i for i, bias in enumerate(matcher.compute_logit_bias()) if bias}


def test_a_grammar_says_what_may_follow() -> None:
    state = Grammar(LL, 'start: "yes" | "yellow"').begin()
    allowed = {TOKENIZER.decode([i]) for i in bits(state.mask())}
    assert allowed == {"y", "ye", "yes", "yel", "yell"} & set(map(TOKENIZER.decode, range(len(TOKENIZER))))
    for token in ids("yes"):
        state.consume(token)
    assert bits(state.mask()) == {EOS}
    assert not state.allows_besides(state.mask(), [EOS])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_masks_along_any_tree_are_those_of_its_paths_alone(data: st.DataObject) -> None:
    """Trees that mostly follow the grammar, drawn after some output; asked in any order."""
    state, output = Grammar(LL, JSON).begin(), []
    for _ in range(data.draw(st.integers(0, 12))):
        output.append(data.draw(st.sampled_from(sorted(bits(state.mask())))))
        if output[-1] == EOS:
            return
        state.consume(output[-1])
    tokens, parents, paths = [], [], []
    for node in range(data.draw(st.integers(1, 12))):
        parent = data.draw(st.integers(-1, node - 1))
        above = paths[parent] if parent >= 0 else []
        good = fresh_mask(JSON, output + above)
        follow = data.draw(st.booleans()) and good
        token = data.draw(st.sampled_from(sorted(good)) if follow else st.integers(0, LL.vocab_size - 1))
        tokens.append(token)
        parents.append(parent)
        paths.append([*above, token])
    want = [fresh_mask(JSON, output + path) for path in paths]
    assert state.allowed(tokens, parents) == [mask is not None for mask in want]
    for node in data.draw(st.permutations(range(len(paths)))):
        if want[node] is not None:
            if data.draw(st.booleans()):
                state.look_ahead(paths[node])
            assert bits(state.mask(paths[node])) == want[node]
    assert bits(state.mask()) == fresh_mask(JSON, output)
    assert state.error is None


def test_forbidden_candidates_go_with_all_below_them() -> None:
    chain = ids('{"name')
    line = ids("\n")[0]  # no character of a JSON string
    tokens = np.array([[chain[0], chain[1], line, chain[0]], [1, 2, 3, 4]])
    parents = np.array([[-1, 0, 0, 2], [-1, 0, 1, 2]])
    scores = -np.array([[1, 2, 3, 4], [1, 2, 3, 4]], np.float32)
    given_ = Candidates(tokens, parents, parents * 0, scores)
    pruned = prune(given_, [Grammar(LL, JSON).begin(), None])
    assert np.isfinite(pruned.scores).tolist() == [[True, True, False, False], [True] * 4]
    assert np.isfinite(given_.scores).all(), "the draft's own candidates were changed"


@pytest.mark.parametrize("beyond", [LL.vocab_size, LL.vocab_size + 1000])
def test_a_draft_of_a_token_that_the_tokenizer_lacks_does_not_end_drafting(beyond: int) -> None:
    """Many models have more rows than their tokenizer has tokens."""
    state, good = Grammar(LL, JSON).begin(), ids("{")[0]
    for _ in range(2):
        assert state.allowed([beyond, good], [-1, -1]) == [False, True]
        assert state.allowed([good, beyond], [-1, 0]) == [True, False]
    assert state.error is None


def test_masks_are_filled_ahead_roots_first_and_no_longer_than_there_is_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [(token, i - 1) for i, token in enumerate(ids('{"name'))]
    spans = []
    for nodes_of_span in (nodes, [], nodes[:1]):
        sequence = sequence_of([1], [])
        sequence.grammar = Grammar(LL, JSON).begin()
        spans.append(span_of(sequence, nodes_of_span))
    filled: list[tuple[int, tuple[int, ...]]] = []

    def look_ahead(state: GrammarState, path: tuple[int, ...]) -> None:
        filled.append(([span.sequence.grammar for span in spans].index(state), path))

    monkeypatch.setattr(GrammarState, "look_ahead", look_ahead)
    fill_ahead([*spans, span_of(sequence_of([1], []), [])], lambda: len(filled) == 4)
    assert filled == [(0, ()), (1, ()), (2, ()), (0, (nodes[0][0],))]
    filled.clear()
    fill_ahead(spans, lambda: False)
    tree = spans[0].tree
    assert tree is not None
    assert [path for number, path in filled if number == 0] == [(), *paths_of(tree)]


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


REFUSED: dict[str, Any] = {
    "nested": nested(150),
    "many properties": {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    "products": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}_{j}": {"type": "integer"}}} for j in range(4)]}
            for i in range(12)
        ]
    },
    "a prime": {"type": "integer", "multipleOf": 982451653},
    "looking ahead": {"type": "string", "pattern": "(?=a)b"},
    "an open group": {"type": "string", "pattern": "((("},
    "another machine": {"$ref": "http://169.254.169.254/latest/meta-data"},
    "a file": {"$ref": "file:///etc/passwd"},
    "a loop": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "itself": {"$ref": "#"},
    "nothing": False,
    "no number": {"type": "integer", "minimum": 5, "maximum": 3},
    "an unknown type": {"type": "strin"},
    "an unknown keyword": {"type": "array", "uniqueItems": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_explodes_or_makes_no_sense_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(GrammarError) as caught:
        Grammar(LL, f"start: %json {json.dumps(REFUSED[name])}")
    message = str(caught.value)
    assert message
    assert len(message) <= module.MAX_REASON_LEN
    assert "\n" not in message
    assert "non-verbose" not in message


@pytest.mark.parametrize("schema", [{"not": {}}, {"type": "string", "pattern": "("}])
def test_a_rule_that_is_refused_is_named_and_the_grammar_not_shown(schema: Any) -> None:
    rules = ['start: "secret" | call_0 | call_1', 'call_0: "x"', f"call_1: %json {json.dumps(schema)}"]
    with pytest.raises(GrammarError) as caught:
        Grammar(LL, "\n".join(rules))
    message = str(caught.value)
    assert message.startswith("in 'call_1': failed to compile JSON schema: ")
    assert message.endswith('["not"]' if "not" in schema else "unclosed group")


def test_what_is_too_complex_is_told_without_the_librarys_advice() -> None:
    """Its limits are ours to set, and no client's."""
    with pytest.raises(GrammarError) as caught:
        Grammar(LL, f"start: /{'.*' * 4000}/")
    assert str(caught.value) == "lexer precomputation failed: its patterns are too complex"


HARD: dict[str, Any] = {
    "repetitions": {"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"},
    "a subset construction": {"type": "string", "pattern": "^(a|b)*a(a|b){25}$", "maxLength": 1000},
    "a long string": {"type": "string", "minLength": 10**6},
    "a long list": {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    "two to the fortieth": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
        | {"d40": {"type": "object"}},
    },
}


@pytest.mark.parametrize("name", HARD)
def test_what_could_explode_later_goes_on_or_says_that_it_cannot(name: str) -> None:
    state = Grammar(LL, f"start: %json {json.dumps(HARD[name])}").begin()
    rng = np.random.default_rng(0)
    for _ in range(300):
        allowed = sorted(bits(state.mask()) - {EOS})
        if state.error is not None or not allowed:
            break
        state.consume(int(rng.choice(allowed)))
    if state.error is not None:
        assert not state.mask().any(), "a grammar that gave up must not end the answer as if it were whole"
        assert state.allowed([5], [-1]) == [False]


def test_running_out_of_fuel_ends_the_state_alone() -> None:
    tight = module.LLParserLimits(step_lexer_fuel=200, step_max_items=20, verbose_errors=False)
    grammar = Grammar(LL, 'start: "a" %json {"type": "object"}')
    matcher = LLMatcher(LL, 'start: "a" %json {"type": "object"}', limits=tight, log_level=0)
    state = GrammarState(matcher, matcher.deep_copy(), LL.vocab_size)
    for token in ids('a{"x": [1, 2'):
        state.mask()
        state.consume(token)
    assert state.error is not None
    assert not state.mask().any()
    other = grammar.begin()
    assert other.mask().any()
    assert other.error is None


def test_grammars_are_compiled_once_and_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 2)
    compiler = GrammarCompiler(ll_tokenizer)
    first: Future[Grammar] = compiler.compile('start: "a"')
    compiler.compile('start: "b"')
    assert compiler.compile('start: "a"') is first
    compiler.compile('start: "c"')
    assert compiler.compile('start: "a"') is first, "it was asked for after b"
    with pytest.raises(GrammarError):
        compiler.compile("start: )").result()
