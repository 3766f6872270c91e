"""What waits for the draft and what stays at page ends, against a plain account of every token."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import TreeLimits
from engine.draft.candidates import DraftTree
from engine.draft.features import FeatureStore
from engine.draft.pages import DraftPages
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.plan import Span
from engine.sequence import Sequence
from processing.prompt import Prompt

SIZE, PAGES = 3, 160
LIMITS = TreeLimits(num_steps=3, topk=3, num_draft_tokens=9)


def sequence_of(name: str, num_prompt: int, page_size: int, pool: PagePool, draft_pool: PagePool) -> Sequence:
    sequence = Sequence.from_request(
        GenerateRequest(
            request_id=name,
            prompt=Prompt(token_ids=list(range(num_prompt))),
            sampling=SamplingParams(max_tokens=100),
        ),
        arrival=0,
        table=PageTable(pool, page_size),
        eos_token_ids=frozenset(),
        max_model_len=200,
        limits=LIMITS,
    )
    DraftPages(draft_pool, page_size).open(sequence)
    return sequence


def value(name: str, position: int) -> float:
    """The feature of a token, of all tokens that there are."""
    return float(100 * int(name) + position + 1)


def tree_of(num_nodes: int) -> DraftTree:
    zeros = np.zeros(num_nodes, np.int64)
    return DraftTree(zeros, zeros - 1, zeros + 1, zeros.astype(np.float32), np.ones(num_nodes + 1, np.uint64))


class Bench:
    """Some sequences whose spans run by order; rejected nodes have the feature -1."""

    def __init__(self, lengths: list[int], page_size: int) -> None:
        self.pool, self.draft_pool = PagePool(PAGES), PagePool(PAGES)
        self.store = FeatureStore(PAGES, page_size, SIZE, torch.float32, torch.device("cpu"))
        self.sequences = [
            sequence_of(str(i), n, page_size, self.pool, self.draft_pool) for i, n in enumerate(lengths)
        ]

    def step(self, runs: list[tuple[int, int, list[int], int]]) -> None:
        """(sequence, length, accepted nodes, nodes of its tree) of each span."""
        spans, paths, rows = [], [], []
        for index, length, path, num_nodes in runs:
            sequence = self.sequences[index]
            start = sequence.num_computed
            sequence.table.reserve(start + length + num_nodes)
            spans.append(Span(sequence, start, length, tree_of(num_nodes) if num_nodes else None))
            paths.append(path)
            own = [value(sequence.request_id, start + i) for i in range(length)]
            nodes = [-1.0] * num_nodes
            for depth, node in enumerate(path):
                nodes[node] = value(sequence.request_id, start + length + depth)
            rows += own + nodes
        features = torch.tensor(rows)[:, None].expand(-1, SIZE).contiguous()
        self.store.keep(spans, paths, features, -features, {})
        for span, path in zip(spans, paths, strict=True):
            sequence = span.sequence
            sequence.num_computed = span.end + len(path)
            if span.end == sequence.num_tokens:  # it drew its path's tokens and one more
                sequence.token_ids.extend(array("q", [7] * (len(path) + 1)))
        features.fill_(float("nan"))  # the row belongs to the next step

    def num_waiting(self, sequence: Sequence) -> int:
        assert sequence.draft is not None
        return sequence.draft_reach - sequence.draft.num_seen

    def catch_up(self, index: int) -> None:
        """Everything that is handed out is the truth, and nothing twice."""
        sequence = self.sequences[index]
        draft = sequence.draft
        assert draft is not None
        one = self.store.take(sequence, sequence.draft_reach)
        end = sequence.num_computed + (1 if sequence.num_wanted == 1 else 0)
        assert (one.start, one.end) == (draft.num_seen, end)
        tokens = range(one.start, one.end)
        want = [0.0 if i == 0 else value(sequence.request_id, i - 1) for i in tokens]
        assert one.features[:, 0].tolist() == want
        known = {first + i: float(row[0]) for first, own in one.embeddings for i, row in enumerate(own)}
        for i in tokens:
            if i < min(sequence.num_prompt_tokens, sequence.num_computed):
                assert known[i] == -value(sequence.request_id, i), "a prompt token's embedding is missing"
        draft.saw(one.end, sequence.token_ids, caching=False)

    def check_page_ends(self, index: int) -> None:
        sequence, size = self.sequences[index], self.store.page_size
        for page in range(sequence.num_computed // size):
            kept = self.store.page_ends[sequence.table.pages[page], 0]
            assert float(kept) == value(sequence.request_id, (page + 1) * size - 1)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), page_size=st.sampled_from([1, 3, 4]))
def test_every_token_is_handed_out_once_with_the_feature_before_it(
    data: st.DataObject, page_size: int
) -> None:
    bench = Bench(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)), page_size)
    for _ in range(data.draw(st.integers(1, 8))):
        runs = []
        for index, sequence in enumerate(bench.sequences):
            wanted = sequence.num_wanted
            if wanted == 1:
                num_nodes = data.draw(st.integers(0, 4))
                count = data.draw(st.integers(0, num_nodes))
                path = sorted(data.draw(st.permutations(range(num_nodes)))[:count])
                runs.append((index, 1, path, num_nodes))
            elif data.draw(st.booleans()):
                runs.append((index, data.draw(st.integers(1, wanted)), [], 0))
        if runs:
            bench.step(runs)
        for index, sequence in enumerate(bench.sequences):
            bench.check_page_ends(index)
            if bench.num_waiting(sequence) and data.draw(st.booleans()):
                bench.catch_up(index)


def test_a_sequence_that_starts_from_cached_pages_has_the_feature_before_them() -> None:
    bench = Bench([8, 8], 4)
    bench.step([(0, 8, [], 0)])
    first, second = bench.sequences
    second.table.adopt(first.table.pages[:1])
    second.num_computed = 4
    DraftPages(bench.draft_pool, 4).open(second)
    bench.step([(1, 4, [], 0)])
    one = bench.store.take(second, second.draft_reach)
    assert one.features[:, 0].tolist() == [value("0", 3), *(value("1", i) for i in range(4, 8))]


def test_what_nobody_catches_up_with_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.draft.features.MAX_WAITING", 5)
    bench = Bench([3], 4)
    bench.step([(0, 3, [], 0)])
    draft = bench.sequences[0].draft
    assert draft is not None
    for _ in range(2):
        assert not draft.given_up
        bench.step([(0, 1, [], 0)])
    bench.step([(0, 1, [], 0)])
    assert draft.given_up
    bench.step([(0, 1, [], 0)])  # and nothing goes wrong after that
    assert not bench.store._waiting, "features are kept for a draft that has given up"


def test_no_more_drafts_give_up_than_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.draft.features.MAX_WAITING_IN_ALL", 40)
    bench = Bench([2] * 8, 4)
    bench.step([(i, 2, [], 0) for i in range(8)])
    for _ in range(4):
        bench.step([(i, 1, [], 0) for i in range(8)])
        waiting = [one.num_tokens for one in bench.store._waiting.values()]
        assert sum(waiting) <= 40
        gone = [s for s in bench.sequences if s.draft is not None and s.draft.given_up]
        assert sum(waiting) + len(gone) * max(waiting) > 40 - max(waiting) or not gone
    assert 1 <= len(gone) <= 4


def test_features_leave_with_their_sequence() -> None:
    bench = Bench([3, 3], 4)
    bench.step([(0, 3, [], 0), (1, 3, [], 0)])
    bench.sequences[0].draft = None
    assert len(bench.store._waiting) == 1


def test_a_sequence_without_a_draft_keeps_page_ends_alone() -> None:
    bench = Bench([6], 4)
    bench.sequences[0].draft = None
    bench.step([(0, 6, [], 0)])
    bench.check_page_ends(0)
    assert not bench.store._waiting


def test_a_step_of_plain_decoding_costs_the_same_however_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step adds a piece to what waits for the draft, which may not be asked for hundreds of steps."""
    bench = Bench([3, 5], 4)
    bench.step([(0, 3, [], 0), (1, 5, [], 0)])
    lookups = 0
    real = torch.Tensor.__len__

    def counted(tensor: torch.Tensor) -> int:
        nonlocal lookups
        lookups += 1
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "__len__", counted)
    took = []
    for _ in range(40):
        before = lookups
        bench.step([(0, 1, [], 0), (1, 1, [], 0)])
        took.append(lookups - before)
    assert max(took[30:]) == max(took[:10])
    bench.catch_up(0)
