"""The lexer's tables, which answers share: drafts take nothing of them, and full ones are not kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.draft.candidates import Candidates, pick
from engine.grammar import grammar as module
from engine.grammar.grammar import Grammar, GrammarCompiler, GrammarState
from engine.grammar.tree import fill_ahead, prune
from engine.plan import Span
from tests.engine.test_grammar import LL, bits, ids, ll_tokenizer
from tests.engine.test_verify import sequence_of

# Nearly every new text takes states of the lexer that no other did.
SPENDING = "start: %json " + json.dumps({"type": "string", "pattern": "^(a|b)*a(a|b){25}$"})
LETTERS = ids("a") + ids("b")
CHAIN = 12
LENGTH = 300
LOW_LIMIT = 3 * LENGTH


@pytest.fixture(autouse=True)
def _low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the lexer's states, so that an answer alone stays below it, and one with all its drafts does not."""
    names = (
        "max_items_in_row",
        "initial_lexer_fuel",
        "step_lexer_fuel",
        "step_max_items",
        "max_grammar_size",
    )
    same = {name: getattr(module.LIMITS, name) for name in names}
    low = module.LLParserLimits(**same, max_lexer_states=LOW_LIMIT, verbose_errors=False)
    monkeypatch.setattr(module, "LIMITS", low)


def letters(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).choice(LETTERS, count).tolist()


def chain_of(seed: int) -> Candidates:
    tokens, parents = np.array([letters(seed, CHAIN)]), np.arange(-1, CHAIN - 1)[None]
    return Candidates(tokens, parents, parents + 1, -np.arange(CHAIN, dtype=np.float32)[None])


def write(state: GrammarState, length: int, seed: int = 0) -> int:
    """How many letters of an answer the grammar got through."""
    state.consume(ids('"')[0])
    for number, letter in enumerate(letters(seed, length)):
        if letter not in bits(state.mask()):
            return number
        state.consume(letter)
    return length


def test_drafts_spend_nothing_of_what_the_answer_may_use() -> None:
    state = Grammar(LL, SPENDING).begin()
    sequence = sequence_of([1], [])
    sequence.grammar = state
    state.consume(ids('"')[0])
    num_verified = 0
    for number, letter in enumerate(letters(0, LENGTH)):
        pruned = prune(chain_of(number + 1), [state])
        (tree,) = pick(pruned, np.isfinite(pruned.scores))
        num_verified += 0 if tree is None else len(tree.token_ids)
        fill_ahead([Span(sequence, sequence.num_computed, 1, tree)], lambda: False)
        assert letter in bits(state.mask()), f"{state.error} after {number} letters"
        state.consume(letter)
    assert state.error is None
    assert CHAIN * 20 < num_verified < CHAIN * LENGTH, "the limit was not reached by looking ahead"


def test_masks_behind_a_path_that_cannot_be_looked_at_are_computed_when_they_are_asked_for() -> None:
    state, plain = Grammar(LL, SPENDING).begin(), Grammar(LL, SPENDING).begin()
    state.consume(ids('"')[0])
    plain.consume(ids('"')[0])
    path = letters(0, 5)
    for number in range(1, LOW_LIMIT):
        state.look_ahead(letters(number, CHAIN))
    state.look_ahead(path)
    assert state.error is None
    assert state.allowed(path, range(-1, 4)) == [False] * 5, "no drafts any more"
    assert bits(state.mask(path)) == bits(plain.mask(path)) != set()


def test_a_grammar_that_answers_used_up_is_compiled_again() -> None:
    """All its answers share the lexer's tables, so none could begin with full ones."""
    compiler = GrammarCompiler(ll_tokenizer)
    first = compiler.compile(SPENDING)
    assert write(first.result().begin(), LENGTH) == LENGTH
    assert compiler.compile(SPENDING) is first
    for seed in range(1, 10):
        write(first.result().begin(), LENGTH, seed)
    assert not first.result().begin().mask().any()
    again = compiler.compile(SPENDING)
    assert again is not first
    assert write(again.result().begin(), LENGTH) == LENGTH
    assert compiler.compile(SPENDING) is again
