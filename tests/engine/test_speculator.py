"""Who is drafted for, which candidates are verified, what is counted, and when the watchdog barks."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TreeLimits
from engine.draft.candidates import Candidates
from engine.encoder_cache import EncoderCache
from engine.messages import GenerateRequest, SamplingParams, SpeculativeParams
from engine.pages import PagePool, PageTable
from engine.plan import Span, StepLimits
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.speculation.budget import DraftPlan, SpeculationBudget
from engine.speculation.costs import CostTable, DraftCosts
from engine.speculation.speculator import Speculator
from engine.verify import Walk
from processing.prompt import Prompt
from tests.engine.trees import Nodes, candidates_of
from tests.golden.drafts import Adversary

LIMITS = TreeLimits(num_steps=3, topk=4, num_draft_tokens=20)


class Fixed(Adversary):
    """Proposes these candidates, a row for each request by its number; keeps who was asked for."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self.asked: list[str] = []
        self.not_ready: set[str] = set()

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        return sequence.request_id not in self.not_ready

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        self.asked = [sequence.request_id for sequence in sequences]
        rows, c = [int(name) for name in self.asked], self._candidates
        return Candidates(c.token_ids[rows], c.parents[rows], c.depths[rows], c.scores[rows])


def running(asked: Seq[SpeculativeParams], max_tokens: int = 50) -> Scheduler:
    """A scheduler whose sequences "0", "1" … have their prompts behind them and one token of output."""
    scheduler = Scheduler(StepLimits(len(asked) + 1, 500, 10), PagePool(2000), EncoderCache(10), caching=True)
    for number, one in enumerate(asked):
        add(scheduler, number, [number, 2, 3], one, max_tokens)
    for span in scheduler.schedule().spans:
        scheduler.commit(span, [4], span.end)
    return scheduler


def add(
    scheduler: Scheduler, number: int, token_ids: list[int], asked: SpeculativeParams, max_tokens: int = 50
) -> None:
    request = GenerateRequest(
        request_id=str(number),
        prompt=Prompt(token_ids=token_ids),
        sampling=SamplingParams(max_tokens=max_tokens),
        speculative=asked,
    )
    scheduler.add(
        Sequence.from_request(
            request,
            arrival=number,
            table=PageTable(scheduler.pool, 4),
            eos_token_ids=frozenset(),
            max_model_len=10_000,
            limits=LIMITS,
        )
    )


CHAIN: Nodes = [(5, -1), (6, 0), (7, 1)]


def test_trees_are_drafted_for_those_who_want_and_can() -> None:
    asked = [SpeculativeParams(), SpeculativeParams(enabled=False), SpeculativeParams(), SpeculativeParams()]
    scheduler = running(asked)
    drafter = Fixed(candidates_of([CHAIN] * 4))
    drafter.not_ready = {"2"}
    scheduler.running[3].token_ids.extend(array("q", [1, 1]))  # more than one token wants to run
    trees = Speculator(drafter, LIMITS).draft(scheduler)
    assert drafter.asked == ["0"]
    assert {name: tree.token_ids.tolist() for name, tree in trees.items()} == {"0": [5, 6, 7]}


@pytest.mark.parametrize(("max_tokens", "drafted"), [(1, []), (2, []), (3, ["0"])])
def test_the_last_token_allowed_needs_no_draft(max_tokens: int, drafted: list[str]) -> None:
    drafter = Fixed(candidates_of([CHAIN]))
    Speculator(drafter, LIMITS).draft(running([SpeculativeParams()], max_tokens))
    assert drafter.asked == drafted


def test_without_a_drafter_or_sequences_nothing_is_drafted() -> None:
    assert Speculator(None, LIMITS).draft(running([SpeculativeParams()])) == {}
    assert Speculator(None, LIMITS).limits.num_steps == 0
    assert Speculator(Fixed(candidates_of([CHAIN])), LIMITS).draft(running([])) == {}


@settings(max_examples=80, deadline=None)
@given(
    tables=st.lists(
        st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from([0.0, 0.1, 0.7, 2.0])), max_size=40),
        min_size=1,
        max_size=4,
    ),
    caps=st.lists(st.integers(1, 30), min_size=4, max_size=4),
)
def test_the_best_candidates_within_each_requests_cap_are_verified(
    tables: list[list[tuple[int, float]]], caps: list[int]
) -> None:
    """EAGLE-2's rerank by cumulative log-probability, here in plain Python, for every request apart."""
    trees: list[list[tuple[int, float]]] = []
    for table in tables:
        nodes: list[tuple[int, float]] = []
        for i, (choice, cost) in enumerate(table):
            parent = choice % (i + 1) - 1
            nodes.append((parent, (0.0 if parent < 0 else nodes[parent][1]) - cost))
        trees.append(nodes)
    candidates = candidates_of([[(100 + i, parent) for i, (parent, _) in enumerate(t)] for t in trees])
    for row, nodes in enumerate(trees):
        candidates.scores[row, : len(nodes)] = [score for _, score in nodes]
    asked = [SpeculativeParams(num_draft_tokens=caps[row]) for row in range(len(trees))]
    found = Speculator(Fixed(candidates), LIMITS).draft(running(asked))
    for row, nodes in enumerate(trees):
        ranked = sorted(range(len(nodes)), key=lambda i: (-np.float32(nodes[i][1]), i))
        best = sorted(ranked[: min(caps[row], LIMITS.num_draft_tokens)])
        if not best:
            assert str(row) not in found
            continue
        tree = found[str(row)]
        assert tree.token_ids.tolist() == [100 + i for i in best]
        place = {node: i for i, node in enumerate(best)} | {-1: -1}
        assert tree.parents.tolist() == [place[nodes[i][0]] for i in best]


def test_scores_that_are_no_numbers_are_no_candidates() -> None:
    candidates = candidates_of([CHAIN, CHAIN])
    candidates.scores[0] = np.nan
    trees = Speculator(Fixed(candidates), LIMITS).draft(running([SpeculativeParams()] * 2))
    assert list(trees) == ["1"]


def count(speculator: Speculator, *rounds: tuple[list[int], int]) -> Sequence:
    """Account for rounds of one request: (accepted nodes of a chain of three, tokens that became output)."""
    scheduler = running([SpeculativeParams()])
    (sequence,) = scheduler.running
    tree = Speculator(Fixed(candidates_of([CHAIN])), LIMITS).draft(scheduler)["0"]
    span = Span(sequence, sequence.num_computed, 1, tree)
    for path, num_taken in rounds:
        walked = Walk(path=path, token_ids=[*tree.token_ids[path].tolist(), 9])
        traced = speculator.count(span, walked, num_taken)
        assert (traced.token_ids, traced.parents) == ([5, 6, 7], [-1, 0, 1])
        assert (traced.accepted, traced.bonus_token_id) == (path, 9)
    return sequence


def test_rounds_are_counted_for_the_request_and_over_all() -> None:
    speculator = Speculator(Fixed(candidates_of([CHAIN])), LIMITS)
    # The third walk accepted three, but the answer ended with the second of them.
    sequence = count(speculator, ([], 1), ([0, 1], 3), ([0, 1, 2], 2))
    stats = sequence.speculation()
    assert stats.acceptance_histogram == [1, 0, 2]
    assert (stats.num_spec_steps, stats.num_draft_tokens) == (3, 9)
    assert (stats.num_accepted_draft_tokens, stats.num_spec_tokens) == (4, 6)
    assert speculator.accepted_per_depth == [2, 2]
    assert (speculator.num_rounds, speculator.num_drafted) == (3, 9)


@pytest.mark.parametrize(
    ("accepted", "kind", "barks"),
    [(0, "eagle", True), (10, "eagle", True), (300, "eagle", False), (0, "ngram", False)],
)
def test_trap_1_the_watchdog_reports_drafts_that_are_never_right(
    accepted: int, kind: str, barks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    drafter: Any = Fixed(candidates_of([CHAIN]))
    drafter.kind = kind
    rounds = [([0] if i < accepted else [], 2 if i < accepted else 1) for i in range(500)]
    with caplog.at_level(logging.WARNING):
        count(Speculator(drafter, LIMITS), *rounds)
    assert bool(caplog.records) is barks


class Behind(Fixed):
    """Has so many rows to read for each request."""

    def __init__(self, candidates: Candidates, rows: dict[str, int]) -> None:
        super().__init__(candidates)
        self._rows = rows

    def num_behind(self, sequence: Sequence) -> int:
        return self._rows[sequence.request_id]


def test_one_sequence_looks_where_drafts_did_not_pay() -> None:
    """The one that costs least, by a node of its own: others are not looked up, however likely."""
    scheduler = running([SpeculativeParams()] * 3)
    drafter = Behind(candidates_of([CHAIN] * 3), {"0": 40, "1": 3, "2": 90})
    drafter.lookup = Fixed(candidates_of([[(5, -1)], [], [(5, -1)]]))  # type: ignore[assignment]
    steep = CostTable({1: 0.020, 64: 0.170})
    budget = SpeculationBudget(steep, DraftCosts(CostTable({1: 0.003, 64: 0.017})), max_steps=3)
    speculator = Speculator(drafter, LIMITS, budget)
    looks = []
    for step in range(600):
        drafter.asked = []
        drafted = speculator.draft(scheduler)
        for name, tree in drafted.items():
            budget.observe(name, tree, [])  # never right
        if step >= 200 and drafter.asked:
            looks.append((drafter.asked, list(drafted)))
    assert looks
    assert all(look == (["1"], ["1"]) for look in looks), looks


class Told(SpeculationBudget):
    """Keeps how many other rows it is told of."""

    other_rows: int

    def plan(self, *args: Any, other_rows: int = 0, **how: Any) -> DraftPlan:
        self.other_rows = other_rows
        return super().plan(*args, other_rows=other_rows, **how)


@pytest.mark.parametrize(("length", "rows"), [(40, 40), (5000, 374)])
def test_the_budget_is_told_of_prompts_that_run_or_are_about_to(length: int, rows: int) -> None:
    scheduler = running([SpeculativeParams(), SpeculativeParams(enabled=False)])
    costs = CostTable({1: 0.020, 64: 0.021})
    budget = Told(costs, DraftCosts(CostTable({1: 0.0001})), max_steps=3)
    drafter: Any = Fixed(candidates_of([CHAIN]))
    drafter.lookup = None
    speculator = Speculator(drafter, LIMITS, budget)
    assert "0" in speculator.draft(scheduler)
    assert budget.other_rows == 1, "who does not speculate"
    for number in (2, 3):  # there is a place for one
        add(scheduler, number, [9] * length, SpeculativeParams())
        assert "0" in speculator.draft(scheduler), "prompts do not end speculation"
        assert budget.other_rows == 1 + rows
