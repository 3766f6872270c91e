"""Constrained answers: what ``transformers`` generates under the same masks, whatever is drafted."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from engine.core import EngineCore
from engine.draft.ngram_drafter import NgramDrafter
from engine.grammar.grammar import GrammarCompiler
from engine.messages import GenerateRequest
from tests.conftest import BuildCheckpoint
from tests.golden import drafts, speculating
from tests.golden.drafts import Garbage, Oracle, Scattered
from tests.golden.reference import EPSILON, Golden, load_golden
from tests.golden.speculating import Story, asking, core_of, num_accepted, plain_core, run_all
from tests.tokenizer import tiny_tokenizer

MAX_TOKENS = 150
FAMILY = "llava"

# What random weights answer must end: nothing here goes on for ever.
scalars = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -20, "maximum": 3000},
        {"type": "string", "maxLength": 6},
        {"type": "string", "pattern": "^[a-z]{2}-[0-9]{3}$"},
        {"enum": ["red", "reddish", "blue", 4]},
        {"const": "Paris, France"},
    ]
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(["name", "names", "x", "größe", "a b"]), unique=True, max_size=3)
    return st.builds(
        lambda keys, values, missing: {
            "type": "object",
            "properties": dict(zip(keys, values, strict=False)),
            "required": keys[missing:],
            "additionalProperties": False,
        },
        names,
        st.lists(inner, min_size=3, max_size=3),
        st.integers(0, 2),
    )


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.builds(lambda items: {"type": "array", "items": items, "maxItems": 2}, inner)
    return st.one_of(objects(inner), arrays, st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner))


SCHEMAS = st.recursive(scalars, containers, max_leaves=4)


def grammar_of(schema: Any) -> str:
    return "start: %json " + json.dumps(schema | {"x-guidance": {"whitespace_flexible": False}})


@lru_cache(maxsize=1)
def grammars() -> GrammarCompiler:
    tokenizer = tiny_tokenizer()
    text, eos = tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id
    return GrammarCompiler(lambda: LLTokenizer(text, eos_token=[eos]))


def plain(golden: Golden) -> EngineCore:
    return plain_core(golden, grammars=grammars())


def drafting(golden: Golden, drafter: Any) -> EngineCore:
    return core_of(golden, speculating.given(drafter), grammars=grammars())


def text_of(golden: Golden, story: Story) -> str:
    return golden.ours.decode(story.token_ids)


def check(golden: Golden, story: Story, schema: Any) -> None:
    assert story.end.finish_reason == "stop", text_of(golden, story)
    jsonschema.validate(json.loads(text_of(golden, story)), schema)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schemas=st.lists(SCHEMAS, min_size=1, max_size=3),
    how=st.sampled_from(
        [
            {},
            {"temperature": 1.2},
            {"temperature": 0.8, "top_p": 0.9, "logprobs": 2},
            {"presence_penalty": 0.7, "repetition_penalty": 1.3, "min_tokens": 6, "logit_bias": {40: 3.0}},
        ]
    ),
    seed=st.integers(0, 1 << 16),
)
def test_no_draft_changes_a_constrained_answer(
    tiny: BuildCheckpoint, schemas: list[Any], how: dict[str, Any], seed: int
) -> None:
    """Several grammars and a free answer in one row; drafts of nonsense, of the truth, and of both."""
    golden = load_golden(tiny(FAMILY))
    prompts = [golden.prompt(f"Answer {i}", (i,)) for i in range(len(schemas))]

    def arrivals() -> list[tuple[int, GenerateRequest]]:
        sampling = {"max_tokens": MAX_TOKENS, "seed": seed} | how
        constrained = [
            (i, asking(str(i), prompt, grammar=grammar_of(schema), **sampling))
            for i, (prompt, schema) in enumerate(zip(prompts, schemas, strict=True))
        ]
        return [*constrained, (0, asking("free", prompts[0], **sampling | {"max_tokens": 20}))]

    want = run_all(plain(golden), arrivals())
    for i, schema in enumerate(schemas):
        check(golden, want[str(i)], schema)
    answers = {name: story.token_ids for name, story in want.items()}
    for drafter in (
        Garbage(drafts.full, 500),
        Oracle(answers),
        Scattered(drafts.mixed, 500, answers),
        NgramDrafter(frozenset()),
    ):
        got = run_all(drafting(golden, drafter), arrivals())
        for name, story in got.items():
            assert story.token_ids == want[name].token_ids, f"{type(drafter).__name__} changed {name}"
            assert story.end.finish_reason == want[name].end.finish_reason
            told = [entry.logprob for entry in story.logprobs]
            assert told == pytest.approx([entry.logprob for entry in want[name].logprobs], abs=1e-4)
        if isinstance(drafter, Oracle):
            assert num_accepted(got) >= sum(map(len, answers.values())) // 2, "too little was accepted"


class Forbid:
    """A logits processor of transformers: the same grammar, asked once a token. Keeps the margins."""

    def __init__(self, folder: Path, grammar: str, prompt_len: int) -> None:
        tokenizer = tiny_tokenizer()
        ll = LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=[tokenizer.eos_token_id])
        self._matcher, self._seen = LLMatcher(ll, grammar, log_level=0), prompt_len
        self.margins: list[float] = []

    def __call__(self, token_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for token in token_ids[0, self._seen :].tolist():
            assert self._matcher.consume_token(token)
        self._seen = token_ids.shape[1]
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        scores = scores.masked_fill(
            ~torch.nn.functional.pad(allowed, (0, scores.shape[1] - len(allowed))), -1e9
        )
        first, second = scores[0].topk(2).values.tolist()
        self.margins.append(first - second)
        return scores


def test_a_constrained_answer_is_that_of_transformers(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(FAMILY))
    schema = {
        "type": "object",
        "properties": {
            "colour": {"type": "string", "maxLength": 20},
            "count": {"type": "integer", "maximum": 99},
        },
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    answers = set()
    for seed in range(3):
        prompt = golden.prompt("What is in this picture?", (seed,))
        forbid = Forbid(golden.folder, grammar_of(schema), len(prompt.token_ids))
        output = golden.model.generate(
            **golden.inputs_of(prompt), max_new_tokens=MAX_TOKENS, do_sample=False, logits_processor=[forbid]
        )
        want = output[0, len(prompt.token_ids) :].tolist()
        request = asking("a", prompt, max_tokens=MAX_TOKENS, grammar=grammar_of(schema), logprobs=1)
        story = run_all(plain(golden), [(0, request)])["a"]
        with torch.no_grad():
            free = golden.model(**golden.inputs_of(prompt)).logits[0, -1].log_softmax(-1)
        told = story.logprobs[0]
        assert told.logprob == pytest.approx(float(free[story.token_ids[0]]), abs=1e-3), "the model's own"
        assert told.top_ids == [int(free.argmax())], "before the grammar's mask"
        if story.token_ids != want:
            at = next(i for i, (a, b) in enumerate(zip(story.token_ids, want, strict=False)) if a != b)
            assert forbid.margins[at] < EPSILON, f"token {at} differs by {forbid.margins[at]:.2e}"
            continue
        check(golden, story, schema)
        answers.add(text_of(golden, story))
    assert len(answers) > 1, "the picture must matter"


def test_a_grammar_decides_when_the_answer_ends(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(FAMILY))
    prompt, number = golden.prompt("How many?"), "start: /[0-9]+/"

    def answer(**how: Any) -> Story:
        core = drafting(golden, Garbage(drafts.full, 500))
        return run_all(core, [(0, asking("a", prompt, **{"max_tokens": 40, "grammar": number} | how))])["a"]

    assert answer(max_tokens=1).end.finish_reason == "length"
    bias = {golden.processor.tokenizer.eos_token_id: -100.0}
    assert answer(logit_bias=bias).end.finish_reason == "length", "digits may go on for ever"
    assert len(answer(min_tokens=12).token_ids) > 12
    short = 'start: "four"'
    for how in ({"min_tokens": 30}, {"logit_bias": bias}):
        story = answer(grammar=short, **how)
        assert (text_of(golden, story), story.end.finish_reason) == ("four", "stop"), (
            "nothing else is allowed"
        )
    stop = golden.processor.tokenizer.encode("u", add_special_tokens=False)
    assert answer(grammar='start: "u"+', stop_token_ids=stop).end.finish_reason == "stop"


def test_what_cannot_be_compiled_is_refused_and_disturbs_nobody(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(FAMILY))
    prompt = golden.prompt("Hello")
    want = run_all(plain(golden), [(0, asking("free", prompt, max_tokens=10))])["free"].token_ids
    bad = {"type": "string", "pattern": "((("}
    stories = run_all(
        plain(golden),
        [
            (0, asking("free", prompt, max_tokens=10)),
            (0, asking("bad", prompt, max_tokens=10, grammar=grammar_of(bad))),
            (1, asking("huge", prompt, max_tokens=10, grammar="start: " + '"a" ' * 100_000)),
            (2, asking("ignoring", prompt, max_tokens=10, grammar='start: "a"', ignore_eos=True)),
        ],
    )
    assert stories["free"].token_ids == want
    codes = {name: story.end.error.code for name, story in stories.items() if story.end.error is not None}
    assert codes == {"bad": "invalid_grammar", "huge": "invalid_grammar", "ignoring": "invalid_request"}
    assert stories["bad"].end.error is not None
    assert "unclosed group" in stories["bad"].end.error.message


def test_a_compilation_that_failed_for_a_passing_reason_is_not_the_clients_fault(
    tiny: BuildCheckpoint,
) -> None:
    golden = load_golden(tiny(FAMILY))
    tokenizer, wrong = tiny_tokenizer(), iter([MemoryError()])

    def load() -> LLTokenizer:
        for error in wrong:
            raise error
        return LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=[tokenizer.eos_token_id])

    core, prompt = plain_core(golden, grammars=GrammarCompiler(load)), golden.prompt("Hello")
    first, second = (
        run_all(core, [(0, asking(name, prompt, max_tokens=10, grammar='start: "no"'))])[name]
        for name in ("first", "second")
    )
    assert first.end.error is not None
    assert first.end.error.code == "internal_error"
    assert text_of(golden, second) == "no"


def test_a_request_can_be_aborted_while_its_grammar_is_compiled(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(FAMILY))
    core, prompt = plain(golden), golden.prompt("Hello")
    core.add(asking("a", prompt, max_tokens=10, grammar='start: "never seen before"'))
    assert core.has_work
    core.abort(["a"])
    (output,) = core.step().outputs
    assert output.finish_reason == "abort"
    assert not core.has_work


def test_an_engine_that_only_compiles_has_work(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(FAMILY))
    prompt = golden.prompt("Hello")
    words = random.Random(0).sample(range(10**6), 30)
    grammar = "start: " + " | ".join(f'"{word}"' for word in words)
    choices = [
        (0, asking(str(i), prompt, max_tokens=20, grammar=grammar, temperature=1.0, choice_index=i, seed=7))
        for i in range(3)
    ]
    stories = run_all(plain(golden), choices)
    texts = [text_of(golden, story) for story in stories.values()]
    assert set(texts) <= set(map(str, words))
    assert len(set(texts)) > 1, "each choice has noise of its own"
