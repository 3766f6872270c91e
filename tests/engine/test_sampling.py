"""Draws follow exact probabilities, agree with transformers' warpers, and depend on their seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from engine.messages import SamplingParams
from engine.noise import uniforms
from engine.sampling import NO_TOKEN, DrawRow, draw
from engine.truncation import truncate


def row(context: list[int] | None = None, num_prompt: int | None = None, **params: Any) -> DrawRow:
    context = [0] if context is None else context
    prompt = len(context) if num_prompt is None else num_prompt
    return DrawRow(SamplingParams(max_tokens=1, **params), context, prompt)


def logits_of(seed: int, rows: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def frequencies(logits: torch.Tensor, draws: int, **params: Any) -> np.ndarray:
    """Counts over ``draws`` seeds of one distribution."""
    rows = [row(seed=seed, **params) for seed in range(draws)]
    tokens = draw(logits.expand(draws, -1).contiguous(), rows).token_ids
    return np.bincount(tokens, minlength=logits.shape[-1])


def assert_follows(counts: np.ndarray, probs: np.ndarray) -> None:
    """Chi-square at a fixed seed: the statistic of a right sampler stays well below this bound."""
    assert counts[probs == 0].sum() == 0, "drew an impossible token"
    likely = probs * counts.sum() >= 5
    expected = probs[likely] * counts.sum()
    statistic = ((counts[likely] - expected) ** 2 / expected).sum()
    freedom = likely.sum() - 1
    assert freedom > 0, "the test's distribution leaves one token"
    assert statistic < freedom + 4 * np.sqrt(2 * freedom), (statistic, freedom)


def warped(logits: torch.Tensor, *processors: Any, context: list[int] | None = None) -> np.ndarray:
    ids = torch.tensor([context or [0]])
    scores = LogitsProcessorList(processors)(ids, logits.clone())
    return torch.softmax(scores, -1)[0].numpy()


@pytest.mark.parametrize(
    ("params", "processors"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.5}, [hf.TemperatureLogitsWarper(0.5)]),
        ({"temperature": 1.7, "top_k": 5}, [hf.TemperatureLogitsWarper(1.7), hf.TopKLogitsWarper(5)]),
        ({"top_p": 0.8}, [hf.TopPLogitsWarper(0.8)]),
        ({"min_p": 0.1}, [hf.MinPLogitsWarper(0.1)]),
        ({"top_k": 8, "top_p": 0.7}, [hf.TopKLogitsWarper(8), hf.TopPLogitsWarper(0.7)]),
        (
            {"min_p": 0.02, "top_k": 9, "top_p": 0.9},
            [hf.MinPLogitsWarper(0.02), hf.TopKLogitsWarper(9), hf.TopPLogitsWarper(0.9)],
        ),
    ],
)
def test_distribution_is_exactly_what_the_parameters_say(
    params: dict[str, Any], processors: list[Any]
) -> None:
    logits = logits_of(1, 1, 24, scale=1.0)
    assert_follows(frequencies(logits, 20_000, **params), warped(logits, *processors))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    top_p=st.sampled_from([1.0, 0.99, 0.5, 0.1]),
    top_k=st.sampled_from([0, 1, 50, 1500]),
    min_p=st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_shortlist_cuts_like_the_whole_vocabulary(
    seed: int, scale: float, top_p: float, top_k: int, min_p: float
) -> None:
    """With a large vocabulary a shortlist is tried first; it must never change who survives."""
    logits = logits_of(seed, 1, 3000, scale)
    processors: list[Any] = []
    if min_p:
        processors.append(hf.MinPLogitsWarper(min_p))
    if top_k:
        processors.append(hf.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(hf.TopPLogitsWarper(top_p))
    probs = warped(logits, *processors)
    params = SamplingParams(max_tokens=1, top_p=top_p, top_k=top_k, min_p=min_p)
    kept = truncate(torch.softmax(logits, -1), [params])[0].numpy()
    ours, theirs = kept > 0, probs > 0
    # The one token at the cut may fall on either side by rounding of a long sum.
    assert (ours != theirs).sum() <= 1, (ours.sum(), theirs.sum())
    both = ours & theirs
    np.testing.assert_allclose(kept[both] / kept[both].sum(), probs[both] / probs[both].sum(), rtol=1e-4)


def test_same_seed_same_token_whatever_else_is_in_the_batch() -> None:
    logits = logits_of(3, 8, 500)
    mixed = [
        row(temperature=1.0, seed=1),
        row(temperature=0.0),
        row(temperature=0.7, top_p=0.9, seed=2),
        row(temperature=1.0, top_k=20, seed=3),
        row([1, 2, 3, 3], 1, temperature=1.0, frequency_penalty=0.5, seed=4),
        row(temperature=2.0, min_p=0.1, seed=5),
        row(temperature=1.0, logit_bias={7: 5.0}, seed=6),
        row([1, 1, 2], 2, temperature=1.0, repetition_penalty=1.3, seed=7),
    ]
    together = draw(logits, mixed).token_ids
    alone = [draw(logits[i : i + 1], [r]).token_ids[0] for i, r in enumerate(mixed)]
    backwards = draw(logits.flip(0), mixed[::-1]).token_ids[::-1]
    assert together == alone == backwards


def test_positions_seeds_and_choices_draw_different_numbers() -> None:
    grid = np.arange(64, dtype=np.uint64)
    zero = np.zeros(64, dtype=np.uint64)
    families = [uniforms(grid, zero, zero), uniforms(zero, grid, zero), uniforms(zero, zero, grid)]
    values = np.concatenate(families)
    assert len(np.unique(values)) == len(values) - 2  # (0, 0, 0) is in all three
    assert ((values >= 0) & (values < 1)).all()


def test_noise_is_uniform_and_uncorrelated_along_positions() -> None:
    positions = np.arange(100_000, dtype=np.uint64)
    noise = uniforms(np.full_like(positions, 42), np.zeros_like(positions), positions)
    assert_follows(np.histogram(noise, bins=50, range=(0, 1))[0], np.full(50, 1 / 50))
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.02


def test_penalties_and_bias_equal_their_formulas() -> None:
    logits = logits_of(5, 1, 16)
    prompt, output = [1, 2, 2], [3, 3, 4]
    line = logits[0].clone()
    line[5] += 1.5
    for token in {1, 2, 3, 4}:
        line[token] = line[token] / 1.3 if line[token] > 0 else line[token] * 1.3
    for token, count in ((3, 2), (4, 1)):
        line[token] -= 0.4 * count + 0.2
    counts = np.zeros(16, dtype=int)
    for seed in range(20_000 // 500):
        rows = [
            row(
                prompt + output,
                3,
                seed=seed * 500 + i,
                logit_bias={5: 1.5},
                repetition_penalty=1.3,
                frequency_penalty=0.4,
                presence_penalty=0.2,
            )
            for i in range(500)
        ]
        counts += np.bincount(draw(logits.expand(500, -1).contiguous(), rows).token_ids, minlength=16)
    assert_follows(counts, torch.softmax(line, -1).numpy())


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(1, 4)
    logits[0, 2] = 50.0
    params = SamplingParams(max_tokens=4, temperature=0.0)
    assert draw(logits, [DrawRow(params, [0], 1)]).token_ids == [2]
    assert draw(logits, [DrawRow(params, [0], 1, frozenset([2]))]).token_ids != [2]


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(9, 2, 40)
    rows = [row(temperature=0.3, top_k=2, logit_bias={1: 9.0}, logprobs=3), row(temperature=0.0, logprobs=0)]
    drawn = draw(logits, rows)
    own = torch.log_softmax(logits, -1)
    assert drawn.logprobs is not None
    assert drawn.top_ids is not None
    assert drawn.top_logprobs is not None
    for i, token in enumerate(drawn.token_ids):
        assert drawn.logprobs[i] == pytest.approx(float(own[i, token]), abs=1e-5)
    best = own[0].topk(3)
    assert drawn.top_ids[0].tolist() == best.indices.tolist()
    assert drawn.top_logprobs[0] == pytest.approx(best.values.numpy(), abs=1e-5)


def test_extreme_temperatures_give_no_nan() -> None:
    logits = logits_of(2, 3, 100, scale=30.0)
    rows = [row(temperature=1e-4, seed=1), row(temperature=1e-30, seed=1), row(temperature=1e4, seed=1)]
    tokens = draw(logits, rows).token_ids
    assert tokens[:2] == logits.argmax(-1)[:2].tolist()
    assert 0 <= tokens[2] < 100


def test_ties_and_neighbours_do_not_move_a_draw() -> None:
    """bfloat16 logits tie often; a flat neighbour makes other code paths run. Neither may change a text."""
    logits = logits_of(11, 40, 3000).bfloat16().float()
    flat = torch.zeros(1, 3000)
    for params in (
        {"top_k": 40},
        {"top_p": 0.9},
        {"min_p": 0.02, "top_p": 0.8},
        {"top_k": 2000, "top_p": 0.95},
    ):
        rows = [row(seed=seed, **params) for seed in range(40)]
        alone = draw(logits, rows).token_ids
        beside = draw(torch.cat([logits, flat]), [*rows, row(seed=1, top_p=0.99)]).token_ids
        assert beside[:-1] == alone, params


def test_a_vocabulary_that_is_no_multiple_of_a_block() -> None:
    logits = torch.full((1, 1537), -30.0)
    logits[0, [0, 511, 512, 1536]] = 0.0
    counts = frequencies(logits, 4000)
    assert_follows(counts, torch.softmax(logits, -1)[0].numpy())


def test_rows_that_are_not_numbers_draw_nothing_and_leave_others_alone() -> None:
    good = logits_of(4, 1, 50)
    bad = [torch.full((1, 50), value) for value in (float("nan"), float("inf"), float("-inf"))]
    for temperature in (0.0, 1.0):
        one = row(temperature=temperature, seed=1, logprobs=1)
        expected = draw(good, [one]).token_ids
        drawn = draw(torch.cat([*bad, good]), [one] * 4)
        assert drawn.token_ids == [NO_TOKEN] * 3 + expected


def test_a_bias_may_be_a_whole_number() -> None:
    """In process nothing makes it a float."""
    logits = torch.zeros(2, 50)
    rows = [row(temperature=0.0, logit_bias={5: 3, 6: 2}), row(temperature=0.0, logit_bias={7: 1.5})]
    assert draw(logits, rows).token_ids == [5, 7]
