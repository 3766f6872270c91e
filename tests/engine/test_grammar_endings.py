"""When an answer under a grammar ends: once nothing may follow, however many tokens were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from engine.draft.candidates import pick
from engine.grammar.grammar import Grammar
from engine.grammar.tree import prune
from engine.plan import Span
from engine.sequence import Sequence
from engine.verify import walk
from tests.engine.test_grammar import EOS, LL, ids
from tests.engine.test_verify import sequence_of
from tests.engine.trees import candidates_of

U = ids("u")[0]


def asking(grammar: str, stops: tuple[int, ...] = (), **sampling: Any) -> Sequence:
    sequence = sequence_of([1], [], **{"temperature": 0.0} | sampling)
    sequence.stop_token_ids = frozenset([EOS, *stops])
    sequence.grammar = Grammar(LL, grammar).begin()
    return sequence


def finish(sequence: Sequence, *, liked: int, draft: list[int]) -> list[int]:
    """The answer of a model that likes a token, and the end next to it; ``draft``: a chain for each step."""
    nodes = [(token, i - 1) for i, token in enumerate(draft)]
    while sequence.finish_reason is None:
        candidates = prune(candidates_of([nodes]), [sequence.grammar])
        (tree,) = pick(candidates, np.isfinite(candidates.scores))
        logits = torch.zeros(1 + (0 if tree is None else len(tree.token_ids)), LL.vocab_size)
        logits[:, liked], logits[:, EOS] = 2.0, 1.0
        (walked,) = walk(logits, [Span(sequence, sequence.num_computed, 1, tree)])
        assert walked.token_ids, "nothing could be drawn"
        sequence.take(walked.token_ids)
        sequence.num_computed = sequence.num_tokens - 1
    return sequence.token_ids[sequence.num_prompt_tokens :].tolist()


@pytest.mark.parametrize("draft", [[], [EOS] * 4, [*ids("no"), EOS, EOS, EOS]], ids=["plain", "ends", "all"])
def test_an_answer_that_is_whole_ends_before_min_tokens(draft: list[int]) -> None:
    sequence = asking('start: "yes" | "no"', min_tokens=10)
    answer = finish(sequence, liked=ids("no")[0], draft=draft)
    assert answer == [*ids("no"), EOS]
    assert (sequence.finish_reason, sequence.stop_token_id) == ("stop", EOS)


@pytest.mark.parametrize("draft", [[], [U] * 4], ids=["plain", "drafts"])
def test_a_stop_token_of_the_client_ends_no_answer_early_that_could_go_on(draft: list[int]) -> None:
    """The grammar allows that token or the end, both are forbidden before ``min_tokens``."""
    sequence = asking('start: "u"+', (U,), min_tokens=5)
    assert finish(sequence, liked=U, draft=draft) == [U] * 6
    assert sequence.stop_token_id == U


def test_a_stop_token_of_the_client_ends_an_answer_that_it_completes() -> None:
    sequence = asking('start: "u"', (U,), min_tokens=5)
    assert finish(sequence, liked=U, draft=[]) == [U]
    assert sequence.stop_token_id == U
