"""How much look-up drafting reads in a step, and how much it holds, however long and many the prompts are."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq

import numpy as np
import pytest

from engine.config import SpeculativeConfig
from engine.draft.ngram_drafter import NgramDrafter
from engine.draft.ngram_index import NgramIndex
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.sequence import Sequence
from processing.prompt import Prompt

LIMITS = SpeculativeConfig(num_steps=3, topk=2, num_draft_tokens=6)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens in each call of ``NgramIndex.extend``."""
    real, sizes = NgramIndex.extend, list[int]()

    def extend(index: NgramIndex, token_ids: Seq[int], skip: int = 0) -> None:
        sizes.append(len(token_ids))
        real(index, token_ids, skip)

    monkeypatch.setattr(NgramIndex, "extend", extend)
    return sizes


def sequence_of(name: str, prompt: Seq[int], output: Seq[int] = ()) -> Sequence:
    request = GenerateRequest(
        request_id=name,
        prompt=Prompt(token_ids=list(prompt)),
        sampling=SamplingParams(max_tokens=1000),
    )
    sequence = Sequence.from_request(
        request,
        arrival=0,
        table=PageTable(PagePool(1), 16),
        eos_token_ids=frozenset(),
        max_model_len=1 << 20,
        limits=LIMITS,
    )
    sequence.token_ids.extend(array("q", output))
    return sequence


def served(source: NgramDrafter, sequences: list[Sequence]) -> list[bool]:
    candidates = source.propose(sequences, LIMITS.num_steps, LIMITS.topk)
    candidates.check()
    assert candidates.num_sequences == len(sequences)
    return np.isfinite(candidates.scores).any(axis=1).tolist()


def text(length: int, end: Seq[int] = (1, 2, 3, 1, 2)) -> list[int]:
    """No n-gram twice but at its end."""
    return [*range(100, 100 + length - len(end)), *end]


@pytest.mark.parametrize("length", [1 << 15, 1 << 17])
def test_of_a_long_prompt_the_end_is_read_over_a_few_steps(read: list[int], length: int) -> None:
    source, sequence, steps = NgramDrafter(frozenset()), sequence_of("a", text(length)), []
    for _ in range(10):
        read.clear()
        found = served(source, [sequence])
        steps.append((sum(read), found))
    assert steps[:3] == [(1 << 13, [False]), (1 << 13, [True]), (0, [True])]


def test_a_short_prompt_is_read_at_once(read: list[int]) -> None:
    assert served(NgramDrafter(frozenset()), [sequence_of("a", text(500))]) == [True]
    assert sum(read) == 500


@pytest.mark.parametrize("count", [8, 32])
def test_many_long_prompts_are_read_one_after_another_and_the_last_hold_less(
    read: list[int], count: int
) -> None:
    """Such as those of the choices of one request."""
    source = NgramDrafter(frozenset(), tokens_per_step=100, prompt_tokens=80, held_tokens=300)
    output = [5, 6, 7, 5, 6]
    sequences = [sequence_of(str(number), text(1000), output) for number in range(count)]
    short = sequence_of("short", text(10))
    total, found = 0, [False]
    while not all(found):
        read.clear()
        found = served(source, [*sequences, short])
        assert sum(read) <= 100
        assert found[-1], "who needs little does not wait"
        total += sum(read)
    assert total == 300 + 10 * (count - 4) + count * len(output) + 10


def test_what_a_request_held_is_free_for_the_next() -> None:
    source = NgramDrafter(frozenset(), prompt_tokens=24, held_tokens=20)
    first = sequence_of("first", text(20))
    assert served(source, [first]) == [True]
    assert served(source, [sequence_of("late", text(20))]) == [False]
    source.forget(first)
    assert served(source, [sequence_of("next", text(20))]) == [True]


def test_a_long_gap_is_read_in_parts(read: list[int]) -> None:
    """After many steps in which nothing was drafted."""
    source, sequence = NgramDrafter(frozenset(), tokens_per_step=100), sequence_of("a", text(50))
    assert served(source, [sequence]) == [True]
    sequence.token_ids.extend(array("q", [*range(1000, 1250), 1, 2]))
    read.clear()
    assert [served(source, [sequence]) for _ in range(3)] == [[False], [False], [True]]
    assert read == [100, 100, 52]


def test_no_part_of_a_prompt_is_remembered_as_output() -> None:
    """However much of it was read when its request ended."""
    source = NgramDrafter(frozenset(), tokens_per_step=30, prompt_tokens=50)
    half = sequence_of("half", text(100))
    assert served(source, [half]) == [False]
    source.forget(half)
    whole = sequence_of("whole", text(100), [7, 8, 9])
    while not served(source, [whole])[0] and source._ngrams.num_tokens("whole") < 53:
        pass
    source.forget(whole)
    assert source._ngrams.num_remembered_tokens == 1 + 4 + 3
    assert served(source, [sequence_of("other", [2, 3, 1])]) == [False]
    assert served(source, [sequence_of("same", [1, 2, 7])]) == [True]
