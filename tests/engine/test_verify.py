"""The walk over draft trees: against plain decoding, and against the distribution that it must draw from."""

from __future__ import annotations

import math
import random
from array import array
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import NO_SPECULATION
from engine.draft.candidates import DraftTree, pick
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.plan import Span
from engine.sampling import NO_TOKEN, DrawRow, draw
from engine.sequence import Sequence
from engine.verify import Walk, walk
from processing.prompt import Prompt
from tests.engine.trees import Nodes, candidates_of

VOCAB = 7
EOS = 6


def sequence_of(prompt: list[int], output: list[int], **sampling: Any) -> Sequence:
    """Ready to be decoded: all but its last token are in KV."""
    sequence = Sequence.from_request(
        GenerateRequest(
            request_id="a",
            prompt=Prompt(token_ids=prompt),
            sampling=SamplingParams(max_tokens=100, **sampling),
        ),
        arrival=0,
        table=PageTable(PagePool(1), 16),
        eos_token_ids=frozenset([EOS]),
        max_model_len=1000,
        limits=NO_SPECULATION,
    )
    sequence.token_ids.extend(array("q", output))
    sequence.num_computed = sequence.num_tokens - 1
    return sequence


def tree_of(nodes: Nodes) -> DraftTree:
    candidates = candidates_of([nodes])
    (tree,) = pick(candidates, np.isfinite(candidates.scores))
    assert tree is not None
    return tree


def span_of(sequence: Sequence, nodes: Nodes) -> Span:
    return Span(sequence, sequence.num_computed, 1, tree_of(nodes) if nodes else None)


def plain_walk(span: Span, logits: torch.Tensor, nodes: Nodes) -> Walk:
    """One draw after the other, as decoding without drafts would do it, while the token drawn was drafted."""
    sequence, walked, at = span.sequence, Walk(), -1
    walked.logprobs = None if sequence.sampling.logprobs is None else []
    while True:
        context = [*sequence.token_ids, *walked.token_ids]
        early = len(context) - sequence.num_prompt_tokens < sequence.sampling.min_tokens
        forbidden = sequence.stop_token_ids if early else frozenset[int]()
        row = DrawRow(sequence.sampling, context, sequence.num_prompt_tokens, forbidden)
        (token_id,) = draw(logits[at + 1][None], [row]).token_ids
        if token_id == NO_TOKEN:
            walked.path = walked.path[: max(0, len(walked.token_ids) - 1)]
            return walked
        walked.token_ids.append(token_id)
        children = [i for i, node in enumerate(nodes) if node == (token_id, at)]
        if not children:
            return walked
        at = children[0]
        walked.path.append(at)


@st.composite
def params(draw_: st.DrawFn) -> dict[str, Any]:
    return {
        "temperature": draw_(st.sampled_from([0.0, 0.0, 0.7, 1.0, 1.5])),
        "seed": draw_(st.integers(0, 1 << 32)),
        "top_p": draw_(st.sampled_from([1.0, 1.0, 0.8])),
        "top_k": draw_(st.sampled_from([0, 0, 3])),
        "min_p": draw_(st.sampled_from([0.0, 0.0, 0.1])),
        "frequency_penalty": draw_(st.sampled_from([0.0, 0.0, 0.9])),
        "presence_penalty": draw_(st.sampled_from([0.0, 0.0, -0.7])),
        "repetition_penalty": draw_(st.sampled_from([1.0, 1.0, 1.4])),
        "logit_bias": draw_(st.sampled_from([{}, {}, {2: 3.0, 4: -9.0}])),
        "min_tokens": draw_(st.sampled_from([0, 0, 4])),
        "stop_token_ids": draw_(st.sampled_from([[], [1, 3]])),
        "ignore_eos": draw_(st.booleans()),
        "logprobs": draw_(st.sampled_from([None, None, 0, 2])),
    }


@settings(max_examples=120, deadline=None)
@given(
    asked=st.lists(params(), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 16),
    broken=st.sampled_from([0.0, 0.0, 0.0, 0.3]),
)
def test_the_walk_is_plain_decoding(asked: list[dict[str, Any]], seed: int, broken: float) -> None:
    """Random trees with random logits, many spans at once; some nodes give no numbers."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    trees: list[Nodes] = []
    for _ in asked:
        size = rng.choice([0, 1, 5, 25, 63])
        trees.append([(rng.randrange(VOCAB), rng.randint(-1, i - 1)) for i in range(size)])
    spans = [
        span_of(
            sequence_of(
                rng.choices(range(VOCAB), k=rng.randint(1, 4)),
                rng.choices(range(VOCAB), k=rng.randint(0, 4)),
                **how,
            ),
            nodes,
        )
        for how, nodes in zip(asked, trees, strict=True)
    ]
    logits = [torch.randn(len(nodes) + 1, VOCAB, generator=generator) * 2 for nodes in trees]
    for own in logits:
        for row in own:
            if rng.random() < broken:
                row.fill_(float("nan"))
    walks = walk(torch.cat(logits), spans)
    for walked, span, own, nodes in zip(walks, spans, logits, trees, strict=True):
        want = plain_walk(span, own, nodes)
        assert (walked.path, walked.token_ids) == (want.path, want.token_ids)
        count = span.sequence.sampling.logprobs
        if count is None:
            assert walked.logprobs is None
            continue
        assert walked.logprobs is not None
        assert len(walked.logprobs) == len(walked.token_ids)
        rows = [0, *(node + 1 for node in walked.path)][: len(walked.token_ids)]
        for told, row, token_id in zip(walked.logprobs, rows, walked.token_ids, strict=True):
            own_logprobs = torch.log_softmax(own[row], -1)
            assert told.logprob == pytest.approx(float(own_logprobs[token_id]), abs=1e-5)
            assert told.top_logprobs == pytest.approx(own_logprobs.topk(count).values.tolist(), abs=1e-5)


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's chi-square test; what cannot happen must not have."""
    possible = probabilities > 0
    assert not counts[~possible].any(), "a token was drawn that the parameters had cut off"
    expected = probabilities[possible] * counts.sum()
    statistic = float((((counts[possible] - expected) ** 2) / expected).sum())
    freedom = int(possible.sum()) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)))


def distribution(logits: torch.Tensor, how: dict[str, Any]) -> np.ndarray:
    """By hand: temperature, then the likeliest tokens up to ``top_p``."""
    probabilities = torch.softmax(logits / how["temperature"], -1).double().numpy()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    probabilities[order[before >= how.get("top_p", 1.0)]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("how", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}])
def test_trap_10_tokens_are_drawn_from_the_targets_own_distribution(how: dict[str, Any]) -> None:
    """A tree that covers part of the mass, walked with many seeds: the first token, the second given each
    first, drafted or not, and the third behind a drafted pair.
    """
    nodes: Nodes = [(0, -1), (2, -1), (5, -1), (1, 0), (3, 0), (0, 1), (4, 3)]
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(nodes) + 1, VOCAB, generator=generator) * 0.6
    logits[:, [0, 1, 2]] += 0.7
    seeds, chunk = 6000, 1500
    walks: list[Walk] = []
    tested = 0
    for first in range(0, seeds, chunk):
        spans = [
            span_of(sequence_of([1, 2], [], seed=seed, ignore_eos=True, **how), nodes)
            for seed in range(first, first + chunk)
        ]
        walks += walk(logits.repeat(chunk, 1), spans)
    for prefix in [(), (0,), (2,), (5,), (0, 1), (0, 3), (2, 0)]:
        node, chance = -1, 1.0
        for token_id in prefix:
            chance *= distribution(logits[node + 1], how)[token_id]
            node = nodes.index((token_id, node))
        drawn = [w.token_ids[len(prefix)] for w in walks if tuple(w.token_ids[: len(prefix)]) == prefix]
        assert bool(drawn) is bool(chance > 0), f"walks that begin with {prefix}"
        if chance * seeds > 50:
            value = p_value(
                np.bincount(drawn, minlength=VOCAB).astype(float), distribution(logits[node + 1], how)
            )
            assert value > 1e-3, f"after {prefix}: p = {value:.1e}"
            tested += 1
    assert tested >= 5
    drafted = {0, 2, 5}
    assert all((len(w.token_ids) > 1) is (w.token_ids[0] in drafted) for w in walks)


def test_the_chi_square_test_itself_would_notice() -> None:
    want = np.array([0.5, 0.3, 0.2])
    assert p_value(np.array([5000, 3010, 1990.0]), want) > 0.5
    assert p_value(np.array([5200, 2850, 1950.0]), want) < 1e-3
    assert math.isclose(p_value(np.array([10, 0.0]), np.array([0.5, 0.5])), 0.00157, rel_tol=0.01)


def test_a_walk_is_the_same_alone_and_among_others() -> None:
    nodes: Nodes = [(token, -1) for token in range(VOCAB)]
    nodes += [(token, parent) for parent in range(VOCAB) for token in range(VOCAB)]  # everything is drafted
    logits = torch.randn(8, len(nodes) + 1, VOCAB, generator=torch.Generator().manual_seed(1))
    spans = [
        span_of(sequence_of([1], [2] * i, seed=i, temperature=1.0, presence_penalty=0.5), nodes)
        for i in range(8)
    ]
    together = walk(logits.flatten(0, 1), spans)
    assert all(len(walked.path) == 2 and len(walked.token_ids) == 3 for walked in together)
    for i, span in enumerate(spans):
        assert walk(logits[i], [span])[0] == together[i]
