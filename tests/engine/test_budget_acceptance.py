"""Acceptance is learned from what was verified, never ranks a child above its parent, and fades."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.speculation.acceptance import (
    KNOTS,
    NUM_KNOTS,
    AcceptanceModel,
    CandidateSpectrum,
    knot_places,
    rising,
)

Rounds = list[list[tuple[float, bool]]]
SCORES = [0.0, -1e-6, -0.003, -0.011, -0.1, -0.12, -0.7, -1.3, -2.0, -4.5, -9.0, -11.9, -12.0, -20.0]
rounds = st.lists(
    st.lists(st.tuples(st.sampled_from(SCORES), st.booleans()), max_size=6), min_size=1, max_size=8
)


def floats(*scores: float) -> np.ndarray:
    return np.array(scores, np.float32)


def feed(model: AcceptanceModel, seen: Rounds, request_id: str = "a") -> None:
    for nodes in seen:
        model.observe(request_id, floats(*(s for s, _ in nodes)), np.array([a for _, a in nodes], np.bool_))
        model.age()


def test_at_first_the_draft_is_believed() -> None:
    scores = floats(0, -0.05, -0.5, -1, -3, -8)
    assert AcceptanceModel().calibrate(scores) == pytest.approx(np.exp(scores), abs=0.01)


@given(rounds, st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_a_parent_never_looks_worse_than_its_child(seen: Rounds, scores: list[float]) -> None:
    model = AcceptanceModel()
    feed(model, seen)
    asked = floats(*scores, -np.inf, *KNOTS)
    # Neighbours in float32 as well: rounding is where an order breaks first.
    asked = np.sort(np.concatenate([asked, np.nextafter(asked, np.float32(-np.inf))]))
    found = model.calibrate(asked)
    assert (np.diff(found) >= 0).all()
    assert (found > 0).all()
    assert (found <= 1).all()


@pytest.mark.parametrize("true_share", [0.02, 0.5, 1.0])
def test_learns_how_much_of_a_claim_is_true(true_share: float) -> None:
    """Candidates of many scores that are accepted ``true_share`` as often as the draft believes."""
    rng = np.random.default_rng(7)
    model = AcceptanceModel()
    for _ in range(600):
        scores = -rng.exponential(1.0, 12).astype(np.float32)
        model.observe("a", scores, rng.random(12) < true_share * np.exp(scores))
        model.age()
    asked = floats(-0.1, -0.5, -1.0, -2.0)
    assert model.calibrate(asked) == pytest.approx(true_share * np.exp(asked), abs=0.08)


@pytest.mark.parametrize("score", [0.0, -0.003, -0.3, -2.0])
def test_confident_nonsense_is_found_out_in_a_few_rounds(score: float) -> None:
    model = AcceptanceModel()
    feed(model, [[(score, False)] * 6] * 20)
    assert model.calibrate(floats(score))[0] < 0.1


def test_what_is_not_tried_is_believed_again_in_time() -> None:
    model = AcceptanceModel()
    feed(model, [[(-0.1, False)] * 6] * 50)
    low = model.calibrate(floats(-0.1))[0]
    for _ in range(6000):
        model.age()
    assert low < 0.05
    assert model.calibrate(floats(-0.1))[0] == pytest.approx(np.exp(-0.1), abs=0.02)


def test_a_request_that_does_better_or_worse_has_its_factor() -> None:
    model = AcceptanceModel()
    for _ in range(30):  # together they are as good as believed, apart they are not
        feed(model, [[(-0.7, True)] * 2], "good")
        feed(model, [[(-0.7, False)] * 2], "bad")
    assert model.factor("good") > 1.2
    assert model.factor("bad") < 0.5
    assert model.factor("new") == 1.0
    assert all(0.1 <= model.factor(name) <= 1.5 for name in ("good", "bad"))
    for _ in range(2500):
        model.age()
    assert model.factor("bad") == pytest.approx(1.0, abs=0.05)
    for name in ("good", "bad", "new"):
        model.forget(name)
    assert model.num_requests == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 50)), min_size=1, max_size=12))
def test_rising_is_the_nearest_sequence_that_never_falls(pairs: list[tuple[float, float]]) -> None:
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    found = rising(values, weights)
    # The known closed form: at i, the largest over starts of the smallest over ends of the mean between.
    mean = [
        [
            np.average(values[a : b + 1], weights=weights[a : b + 1]) if b >= a else np.inf
            for b in range(len(pairs))
        ]
        for a in range(len(pairs))
    ]
    expected = [max(min(mean[a][i:]) for a in range(i + 1)) for i in range(len(pairs))]
    assert found == pytest.approx(np.array(expected))
    assert (np.diff(found) >= 0).all()


@given(rounds, rounds)
@settings(max_examples=50, deadline=None)
def test_spectrum_times_calibration_is_what_candidates_are_worth(seen: Rounds, drafted: Rounds) -> None:
    """Exactly: between knots both are shared in the same proportion."""
    model, spectrum = AcceptanceModel(), CandidateSpectrum(3)
    feed(model, seen)
    worth = np.zeros(3)
    for nodes in drafted:
        scores = floats(*(max(s, -12.0) for s, _ in nodes))
        depths = 1 + np.arange(len(nodes)) % 3
        spectrum.observe(depths, *knot_places(scores), np.array([3]))
        np.add.at(worth, depths - 1, model.calibrate(scores))
    assert (spectrum.mean() * model.curve).sum(axis=1) == pytest.approx(worth / len(drafted))
    assert spectrum.mean().shape == (3, NUM_KNOTS)


def test_a_depth_that_is_seldom_drafted_keeps_its_own_mean() -> None:
    spectrum = CandidateSpectrum(4)
    places = knot_places(floats(-1, -1))
    spectrum.observe(np.array([1, 2]), *places, np.array([2]))
    for _ in range(5000):
        spectrum.age()
        spectrum.observe(np.array([1, 1]), *places, np.array([1]))
    assert spectrum.mean().sum(axis=1) == pytest.approx([2.0, 1.0, 0.0, 0.0], abs=1e-3)
