"""Packing, the loss, the vocabulary, the schedule and the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.losses import distil
from training.packing import Plan
from training.precision import with_precision
from training.settings import TrainSettings
from training.student import draft_vocabulary
from training.teacher import Head
from training.trainer import learning_rate, noisy

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 9), st.integers(10, 70), st.integers(10, 200), st.integers(0, 5))
def test_an_epoch_holds_every_dialogue_once_within_the_limits(
    lengths: list[int], batch_size: int, row_length: int, tokens_per_pass: int, seed: int
) -> None:
    plan = Plan(np.array(lengths), batch_size, row_length, tokens_per_pass, seed)
    steps = list(plan.steps(0, plan.steps_per_epoch))
    seen = [example for passes in steps for one in passes for row in one.rows for example in row]
    assert sorted(seen) == list(range(len(lengths)))
    for passes in steps:
        assert sum(len(row) for one in passes for row in one.rows) <= batch_size
        assert [one.first_row for one in passes] == [
            sum(len(p.rows) for p in passes[:i]) for i in range(len(passes))
        ]
        for one in passes:
            sizes = [sum(lengths[e] for e in row) for row in one.rows]
            assert all(size <= row_length or len(row) == 1 for size, row in zip(sizes, one.rows, strict=True))
            assert max(sizes) * len(sizes) <= tokens_per_pass or len(sizes) == 1


@given(LENGTHS, st.integers(1, 9), st.integers(0, 20))
def test_a_step_is_the_same_wherever_a_run_begins(lengths: list[int], batch_size: int, first: int) -> None:
    plan = Plan(np.array(lengths), batch_size, 50, 100, 1)
    assert list(plan.steps(first, 25)) == list(plan.steps(0, 25))[first:]


def test_epochs_have_orders_of_their_own() -> None:
    plan = Plan(np.ones(50, np.int64), 10, 100, 100, 0)
    batches = list(plan.steps(0, 10))
    assert batches[:5] != batches[5:]


def test_the_loss_is_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    states, features = (torch.randn(3, 8, generator=generator) * 2 for _ in range(2))
    head = Head(torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator))
    labels = head(features).softmax(-1)
    loss = distil(
        states, features, head, labels, torch.tensor([1.0, 0.0, 1.0]), ce_weight=0.1, feature_weight=1.0
    )
    ce = feature = 0.0
    hits = 0
    for i in (0, 2):
        z = (head.weight @ states[i] + head.bias).tolist()
        log_sum = np.log(np.exp(z).sum())
        ce -= sum(p * (zk - log_sum) for p, zk in zip(labels[i].tolist(), z, strict=True))
        gaps = (states[i] - features[i]).abs().tolist()
        feature += sum(0.5 * g * g if g < 1 else g - 0.5 for g in gaps) / 8
        hits += int(np.argmax(z) == int(labels[i].argmax()))
    assert float(loss.ce) == pytest.approx(ce, rel=1e-5)
    assert float(loss.feature) == pytest.approx(feature, rel=1e-5)
    assert float(loss.total) == pytest.approx(0.1 * ce + feature, rel=1e-5)
    assert float(loss.hits) == hits


def test_autocast_does_not_round_the_sums() -> None:
    """257 tokens are 257 hits, which bfloat16 cannot count."""
    states = torch.randn(257, 8, generator=torch.Generator().manual_seed(0))
    head = Head(torch.eye(8), None)
    with torch.autocast("cpu", torch.bfloat16):
        labels = head(states).float().softmax(-1)
        loss = distil(states, states, head, labels, torch.ones(257), ce_weight=0.1, feature_weight=1.0)
    assert {loss.total.dtype, loss.ce.dtype, loss.hits.dtype} == {torch.float32}
    assert float(loss.hits) == 257
    assert float(loss.feature) == 0


def test_the_vocabulary_is_the_answers_most_frequent_tokens() -> None:
    counts = np.array([0, 5, 0, 9, 1, 7, 0, 3])
    found = draft_vocabulary(counts, 4, always={6}, never=5)
    assert found is not None
    assert found.tolist() == [1, 3, 6, 7]
    filled = draft_vocabulary(counts, 7, always={6}, never=5)
    assert filled is not None
    assert filled.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert draft_vocabulary(counts, None, always={6}, never=5) is None
    assert draft_vocabulary(counts, 8, always={6}, never=5) is None


def run_settings(**changes: Any) -> TrainSettings:
    return TrainSettings(model="m", data=[Path("d")], out=Path("o"), **changes)


def test_the_learning_rate_rises_stays_or_falls() -> None:
    constant = run_settings(lr=1.0, warmup_steps=4)
    assert [learning_rate(step, 10, constant) for step in (0, 1, 3, 4, 9)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    linear = run_settings(lr=1.0, schedule="linear")
    assert [learning_rate(step, 10, linear) for step in (0, 5, 9)] == pytest.approx([1.0, 0.5, 0.1])
    cosine = run_settings(lr=1.0, schedule="cosine")
    assert [learning_rate(step, 10, cosine) for step in (0, 5)] == pytest.approx([1.0, 0.5])
    assert 0 < learning_rate(9, 10, cosine) < 0.03


def test_noise_is_even_within_its_bounds_and_follows_from_its_key() -> None:
    features = torch.zeros(2, 50, 40)
    noise = noisy(features, 0.1, (0, 3, 2))
    assert torch.equal(noise, noisy(features, 0.1, (0, 3, 2)))
    assert not torch.equal(noise, noisy(features, 0.1, (0, 4, 2)))
    assert noise.abs().max() <= 0.1
    assert float(noise.std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert noisy(features, 0.0, (0, 3, 2)) is features


@pytest.mark.parametrize(
    ("asked", "device", "cpu", "wanted"),
    [
        ("auto", "cpu", {"avx2": True, "avx512_bf16": False}, "no"),
        ("auto", "cpu", {"avx2": True, "avx512_bf16": True}, "bf16"),
        ("auto", "cpu", {"neon": True, "bf16": True}, "bf16"),
        ("auto", "cuda", {"avx2": True}, "bf16"),
        ("bf16", "cpu", {"avx2": True}, "bf16"),
        ("no", "cuda", {}, "no"),
    ],
)
def test_bfloat16_is_used_where_a_processor_can_multiply_it(
    asked: str, device: str, cpu: dict[str, bool], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    settings = TrainSettings(model="m", data=[Path("d")], out=Path("o"), mixed_precision=asked)  # type: ignore[arg-type]
    assert with_precision(settings, torch.device(device)).mixed_precision == wanted
