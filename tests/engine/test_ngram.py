"""Look-up drafting: what a plain search finds, in the same order, and nothing that must not be proposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TreeLimits
from engine.draft.candidates import Candidates
from engine.draft.ngram import NgramLookup
from engine.draft.ngram_index import NgramIndex

MAX, MIN, MATCHES, FLOOR = 4, 2, 8, 0.02
IMAGE = 3

Paths = dict[tuple[int, ...], float]
texts = st.lists(st.integers(0, 4), min_size=1, max_size=24)


def begin(lookup: NgramLookup, request_id: str, prompt: Sequence[int], salt: str, **options: bool) -> None:
    lookup.begin(request_id, num_prompt=len(prompt), salt=salt, **options)
    lookup.extend(request_id, prompt)


def limits(num_steps: int = 6, topk: int = 3, num_draft_tokens: int = 32) -> TreeLimits:
    return TreeLimits(num_steps=num_steps, topk=topk, num_draft_tokens=num_draft_tokens)


def paths_of(candidates: Candidates, row: int = 0) -> Paths:
    """Each proposed path from the root, with its score."""
    found: list[tuple[int, ...]] = []
    scores: list[float] = []
    for i in np.flatnonzero(np.isfinite(candidates.scores[row])):
        parent = int(candidates.parents[row, i])
        found.append((*(found[parent] if parent >= 0 else ()), int(candidates.token_ids[row, i])))
        scores.append(float(candidates.scores[row, i]))
    assert len(set(found)) == len(found), "a path is proposed twice"
    return dict(zip(found, scores, strict=True))


@dataclass
class Remembered:
    lead: list[int]
    output: list[int]


def search(
    own: list[int], memory: list[Remembered], never: set[int], steps: int
) -> list[tuple[int, list[int]]]:
    """(length, continuation) of the matches that count, by plain search."""
    places: list[tuple[int, int, int]] = []  # (text, end, length); text -1 is our own
    for n in range(MAX, MIN - 1, -1):
        if len(own) < n:
            continue
        tail = own[-n:]
        sources = [(-1, own, 0)] + [
            (i, m.lead + m.output, len(m.lead) - 1) for i, m in reversed(list(enumerate(memory)))
        ]
        for name, text, first_end in sources:
            for end in range(len(text) - 1, -1, -1):
                known = any(p[:2] == (name, end) for p in places)
                itself = name == -1 and end == len(own) - 1
                if (
                    end >= max(first_end, n - 1)
                    and text[end - n + 1 : end + 1] == tail
                    and not known | itself
                ):
                    places.append((name, end, n))
    matches = []
    for name, end, n in places[:MATCHES]:
        if name == -1:
            following = [own[end + 1 + i % (len(own) - 1 - end)] for i in range(steps)]
        else:
            following = (memory[name].lead + memory[name].output)[end + 1 : end + 1 + steps]
        stop = next((i for i, token in enumerate(following) if token in never), len(following))
        matches.append((n, following[:stop]))
    return matches


def all_paths(matches: list[tuple[int, list[int]]], limit: TreeLimits) -> Paths:
    """Every path above the floor, within depth and width, with the score that the module's docstring says."""
    paths: Paths = {}

    def grow(path: tuple[int, ...], score: float) -> None:
        depth = len(path)
        if depth == limit.num_steps:
            return
        weights: dict[int, int] = {}
        for n, following in matches:
            if len(following) > depth and tuple(following[:depth]) == path:
                weight = 2 ** (min(n + depth, MAX) - MIN)
                weights[following[depth]] = weights.get(following[depth], 0) + weight
        total = sum(weights.values()) + 1
        for token in sorted(weights, key=lambda t: -weights[t])[: limit.topk]:
            below = score + math.log(weights[token] / total)
            if below >= math.log(FLOOR):
                paths[(*path, token)] = below
                grow((*path, token), below)

    grow((), 0.0)
    return paths


@given(
    prompt=texts,
    outputs=st.lists(texts, max_size=6),
    others=st.lists(st.tuples(texts, texts), max_size=3),
    limit=st.builds(limits, st.integers(0, 7), st.integers(0, 4), st.integers(0, 20)),
)
@settings(max_examples=150, deadline=None)
def test_proposes_what_a_plain_search_finds(
    prompt: list[int],
    outputs: list[list[int]],
    others: list[tuple[list[int], list[int]]],
    limit: TreeLimits,
) -> None:
    lookup = NgramLookup(never=frozenset({IMAGE}), min_probability=FLOOR)
    for other_prompt, other_output in others:
        begin(lookup, "other", other_prompt, "")
        lookup.extend("other", other_output)
        lookup.end("other", remember=True)
    memory = [Remembered(p[-MAX:], o) for p, o in others]
    begin(lookup, "a", prompt, "")
    own = list(prompt)
    for output in [[], *outputs]:
        lookup.extend("a", output)
        own += output
        candidates = lookup.propose(["a"], [limit])
        candidates.check()
        got = paths_of(candidates)
        expected = all_paths(search(own, memory, {IMAGE}, limit.num_steps), limit)
        assert got.keys() <= expected.keys()
        assert all(got[path] == pytest.approx(expected[path], abs=1e-5) for path in got)
        # Where the tree's size is the limit, the likeliest nodes are kept; ties may go either way.
        best = sorted(expected.values(), reverse=True)[: limit.num_draft_tokens]
        assert sorted(got.values(), reverse=True) == pytest.approx(best, abs=1e-5)


def test_text_that_repeats_gives_deep_paths() -> None:
    lookup = NgramLookup()
    begin(lookup, "poem", [1, 2, 3, 4, 5, 1, 2, 3], "")
    deep = limits(num_steps=12)
    assert (4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5) in paths_of(lookup.propose(["poem"], [deep]))
    begin(lookup, "dots", [9, 7, 7, 7, 7], "")
    assert (7,) * 10 in paths_of(lookup.propose(["dots"], [deep]))


def test_agreement_and_longer_matches_are_likelier() -> None:
    lookup = NgramLookup()
    begin(lookup, "once", [1, 2, 3, 9, 1, 2], "")
    begin(lookup, "twice", [1, 2, 3, 8, 1, 2, 3, 9, 1, 2], "")
    begin(lookup, "longer", [9, 1, 2, 3, 9, 1, 2], "")
    begin(lookup, "split", [1, 2, 3, 8, 1, 2, 4, 9, 1, 2], "")
    rows = [paths_of(lookup.propose([name], [limits()])) for name in ("split", "once", "twice", "longer")]
    split, once, twice, longer = (row[(3,)] for row in rows)
    assert split < once < min(twice, longer)


def test_requests_draft_together_and_the_short_ones_are_padded() -> None:
    lookup = NgramLookup()
    begin(lookup, "new", [1, 2, 3, 4], "")
    begin(lookup, "repeats", [1, 2, 3, 1, 2], "")
    both = lookup.propose(["new", "repeats"], [limits(), limits(num_steps=2)])
    both.check()
    assert not np.isfinite(both.scores[0]).any()
    assert set(paths_of(both, 1)) == {(3,), (3, 1)}
    nothing = lookup.propose(["new"], [limits()])
    nothing.check()
    assert nothing.scores.shape == (1, 0)


def test_outputs_of_ended_requests_are_found_from_their_first_token_but_prompts_are_not() -> None:
    lookup = NgramLookup()
    begin(lookup, "old", [50, 51, 52, 53, 98, 99], "")
    lookup.extend("old", [10, 11, 12])
    lookup.end("old", remember=True)
    begin(lookup, "new", [60, 61, 98, 99], "")  # the template's end is the same
    assert set(paths_of(lookup.propose(["new"], [limits()]))) == {(10,), (10, 11), (10, 11, 12)}
    begin(lookup, "spy", [50, 51, 52], "")
    assert not paths_of(lookup.propose(["spy"], [limits()]))


def test_nothing_of_other_requests_is_proposed_to_one_that_is_shown_what_was_proposed() -> None:
    lookup = NgramLookup()
    begin(lookup, "a", [1, 2], "")
    lookup.extend("a", [7, 8, 9])
    lookup.end("a", remember=True)
    begin(lookup, "open", [5, 1, 2], "")
    begin(lookup, "traced", [5, 1, 2], "", only_own=True)
    assert (7, 8, 9) in paths_of(lookup.propose(["open"], [limits()]))
    assert not paths_of(lookup.propose(["traced"], [limits()]))
    lookup.extend("traced", [6, 5, 1])
    assert (2, 6) in paths_of(lookup.propose(["traced"], [limits()]))  # its own text is


def test_a_request_that_is_not_remembered_leaves_nothing() -> None:
    lookup = NgramLookup()
    begin(lookup, "old", [1, 2], "")
    lookup.extend("old", [3, 4, 5])
    lookup.end("old", remember=False)
    begin(lookup, "new", [1, 2, 3], "")
    assert not paths_of(lookup.propose(["new"], [limits()]))
    assert lookup.num_remembered_tokens == 0
    with pytest.raises(KeyError):
        lookup.propose(["old"], [limits()])


@given(
    jobs=st.lists(st.tuples(st.sampled_from("xyz"), texts), min_size=1, max_size=12),
    capacity=st.integers(0, 60),
    tail=st.lists(st.integers(0, 4), min_size=2, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_salts_share_nothing_and_memory_is_bounded(
    jobs: list[tuple[str, list[int]]], capacity: int, tail: list[int]
) -> None:
    """Every salt writes with tokens of its own; a look-up under a salt meets those only."""
    lookup = NgramLookup(memory_tokens=capacity)
    for salt, output in jobs:
        begin(lookup, "job", tail, salt)  # the same prompt for all
        lookup.extend("job", [token + 100 * ord(salt) for token in output])
        lookup.end("job", remember=True)
        assert lookup.num_remembered_tokens <= capacity
    for salt in "xyz":
        begin(lookup, salt, tail, salt)
    rows = lookup.propose(list("xyz"), [limits()] * 3)
    for row, salt in enumerate("xyz"):
        foreign = {token for path in paths_of(rows, row) for token in path if token not in tail}
        assert {token // 100 for token in foreign} <= {ord(salt)}


def test_the_oldest_outputs_leave_first() -> None:
    lookup = NgramLookup(memory_tokens=3 * (5 + 10))  # three outputs of ten with their leads
    for number in range(4):
        begin(lookup, "job", [1, 2, 3, 4], f"salt {number % 2}")
        lookup.extend("job", range(100 * number, 100 * number + 10))
        lookup.end("job", remember=True)
    for number, known in enumerate([False, True, True, True]):
        begin(lookup, "look", [100 * number, 100 * number + 1], f"salt {number % 2}")
        assert bool(paths_of(lookup.propose(["look"], [limits()]))) is known
        lookup.end("look", remember=False)


def test_an_output_larger_than_memory_keeps_its_end() -> None:
    lookup = NgramLookup(memory_tokens=20)
    begin(lookup, "long", [1, 2], "")
    lookup.extend("long", range(1000, 2000))
    lookup.end("long", remember=True)
    begin(lookup, "look", [1990, 1991], "")
    assert (1992, 1993) in paths_of(lookup.propose(["look"], [limits()]))


@given(pieces=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_forgetting_removes_every_entry(pieces: list[list[int]]) -> None:
    """An index that forgot its first texts is one that never saw them."""
    index = NgramIndex(2, 4)
    padded = [[-1] * 4 + piece for piece in pieces]
    for piece in padded:
        index.extend(piece, skip=4)
    for gone, piece in enumerate(padded, 1):
        index.forget(len(piece))
        fresh = NgramIndex(2, 4)
        for other in padded[gone:]:
            fresh.extend(other, skip=4)
        assert index.token_ids == fresh.token_ids
        assert index.num_entries == fresh.num_entries
        shift = index.last - fresh.last
        grams = {tuple(fresh.token_ids[i : i + n]) for n in (2, 3, 4) for i in range(len(fresh) - n + 1)}
        for gram in grams:
            assert list(index.occurrences(gram)) == [place + shift for place in fresh.occurrences(gram)]
    assert index.num_entries == 0


def test_an_image_placeholder_ends_a_path() -> None:
    lookup = NgramLookup(never=frozenset({IMAGE}))
    begin(lookup, "a", [10, 11, 12, IMAGE, IMAGE, IMAGE, 13, 10, 11], "")
    assert set(paths_of(lookup.propose(["a"], [limits()]))) == {(12,)}
    begin(lookup, "b", [10, IMAGE, IMAGE, IMAGE, IMAGE], "")
    assert not paths_of(lookup.propose(["b"], [limits()]))
