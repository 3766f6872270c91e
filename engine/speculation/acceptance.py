"""Learns how often a candidate of a given score is accepted, and which candidates drafting yields.

A score is a draft's cumulative log-probability, so ``exp(score)`` is the draft's own estimate of the
acceptance of the whole path; how accurate it is, is learned here. All statistics are kept at *knots*, fixed
scores that are denser near 0 (equal steps in the square root of -score); a candidate between two knots counts
towards both in proportion. Old evidence fades with every decision of the engine, whether or not it drafts, so
that estimates that have not been tested for long return to the prior. No torch, no random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

NUM_KNOTS = 33
LOWEST_SCORE = -12.0
KNOTS: Floats = LOWEST_SCORE * (1 - np.arange(NUM_KNOTS) / (NUM_KNOTS - 1)) ** 2  # rising to 0

FADE = 1 - 1 / 512  # fraction of the evidence on scores that is left after a decision …
SPECTRUM_FADE = 1 - 1 / 32  # … of the evidence on what drafting yields, which changes with the text …
REQUEST_FADE = 1 - 1 / 256  # … and of the evidence on a request
PRIOR_TRIALS = 1.0  # weight of a knot's own prior, exp(score), in trials …
PRIOR_WEIGHT = 0.05  # … and its weight in trials against a knot that was tried and says otherwise
REQUEST_PRIOR = 4.0  # accepted and expected nodes that a new request starts with
FACTOR_RANGE = (0.1, 1.5)


def knot_places(scores: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the knot below each score, at most the last but one, and the score's share of the way from that
    knot to the next, 0 to 1.

    The result never decreases as scores increase. ``-inf`` is at the lowest knot.
    """
    down = np.sqrt(np.clip(scores.astype(np.float64) / LOWEST_SCORE, 0.0, 1.0))
    place = (1.0 - down) * (NUM_KNOTS - 1)
    below = np.minimum(place.astype(np.int64), NUM_KNOTS - 2)
    return below, place - below


def spread(cells: npt.NDArray[np.int64], share: Floats, weights: Floats, size: int) -> Floats:
    """Sum ``weights`` into ``[size]``: 1 - ``share`` of each at its cell, the rest at the next cell."""
    total: Floats = np.bincount(cells, weights * (1 - share), minlength=size).astype(np.float64)
    total += np.bincount(cells + 1, weights * share, minlength=size)
    return total


@dataclass(slots=True)
class _RequestRecord:
    accepted: float = 0.0
    expected: float = 0.0
    updated: int = 0


class AcceptanceModel:
    """Running estimates of acceptance, over all requests and for each request seen."""

    def __init__(self) -> None:
        self._trials: Floats = np.zeros(NUM_KNOTS)
        self._accepted: Floats = np.zeros(NUM_KNOTS)
        self._curve: Floats | None = None  # computed lazily
        self._requests: dict[str, _RequestRecord] = {}
        self._now = 0

    def knows(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def curve(self) -> Floats:
        """The acceptance probability at the knots, ``[NUM_KNOTS]``; never decreases with the score."""
        if self._curve is None:
            trials = self._trials + PRIOR_TRIALS
            means = (self._accepted + PRIOR_TRIALS * np.exp(KNOTS)) / trials
            self._curve = rising(means, self._trials + PRIOR_WEIGHT)
        return self._curve

    def calibrate(self, scores: npt.NDArray[np.float32]) -> Floats:
        """Return the probability that candidates with these scores are accepted, same shape.

        A lower score never gets a higher probability, to the last bit: a parent is at least as good as its
        child.
        """
        return self.calibrate_at(*knot_places(scores))

    def calibrate_at(self, below: npt.NDArray[np.int64], share: Floats) -> Floats:
        """``calibrate`` for scores whose knot places are known."""
        low, high = self.curve[below], self.curve[below + 1]
        found: Floats = np.minimum(low + (high - low) * share, high)  # rounding must not exceed the next knot
        return found

    def factor(self, request_id: str) -> float:
        """Return how much better (above 1) or worse than expected the drafts of this request do."""
        record = self._requests.get(request_id)
        if record is None:
            return 1.0
        faded = REQUEST_FADE ** (self._now - record.updated)
        ratio = (record.accepted * faded + REQUEST_PRIOR) / (record.expected * faded + REQUEST_PRIOR)
        return min(max(ratio, FACTOR_RANGE[0]), FACTOR_RANGE[1])

    def observe(
        self, request_id: str, scores: npt.NDArray[np.float32], accepted: npt.NDArray[np.bool_]
    ) -> None:
        """Record the verified nodes of one request in one round; both arrays are ``[M]``, M from 0.

        Every node is one trial, even if its parent was rejected: scores are those of whole paths.
        """
        below, share = knot_places(scores)
        record = self._requests.setdefault(request_id, _RequestRecord(updated=self._now))
        faded = REQUEST_FADE ** (self._now - record.updated)
        record.accepted = record.accepted * faded + float(accepted.sum())
        record.expected = record.expected * faded + float(self.calibrate_at(below, share).sum())
        record.updated = self._now
        self._trials += spread(below, share, np.ones(len(below)), NUM_KNOTS)
        self._accepted += spread(below, share, accepted.astype(np.float64), NUM_KNOTS)
        self._curve = None

    def age(self) -> None:
        """Let old evidence fade; called once per decision."""
        self._now += 1
        self._trials *= FADE
        self._accepted *= FADE
        self._curve = None

    def forget(self, request_id: str) -> None:
        """Drop a request that has ended. Unknown ids are ignored, since not every request speculates."""
        self._requests.pop(request_id, None)


class CandidateSpectrum:
    """The average number of candidates per score that drafting yields for a sequence at each depth.

    It depends on the draft and the text, not on the batch: together with the calibration it predicts the gain
    of a round of any depth for any number of sequences.
    """

    def __init__(self, max_depth: int) -> None:
        self._counts: Floats = np.zeros((max_depth, NUM_KNOTS))
        self._rounds: Floats = np.zeros(max_depth)  # sequences drafted at least to each depth

    def mean(self) -> Floats:
        """Return the candidates per sequence, ``[max_depth, NUM_KNOTS]``.

        Depth 1 is row 0; depths never tried are 0.
        """
        rounds = self._rounds[:, None]
        means: Floats = np.divide(self._counts, rounds, out=np.zeros_like(self._counts), where=rounds > 0)
        return means

    def observe(
        self,
        depths: npt.NDArray[np.int64],
        below: npt.NDArray[np.int64],
        share: Floats,
        levels: npt.NDArray[np.int64],
    ) -> None:
        """Record the N candidates of one round: depths and knot places of their scores, each ``[N]``.

        ``levels`` ``[S]``: the depth to which each sequence was drafted.
        """
        cells = (depths - 1) * NUM_KNOTS + below
        added = spread(cells, share, np.ones(len(cells)), self._counts.size)
        self._counts += added.reshape(self._counts.shape)
        deep = np.bincount(levels, minlength=len(self._rounds) + 1)
        self._rounds += deep[::-1].cumsum()[::-1][1:]  # sequences drafted at least to each depth

    def age(self) -> None:
        """Let old evidence fade; called once per decision."""
        self._counts *= SPECTRUM_FADE
        self._rounds *= SPECTRUM_FADE


def rising(values: Floats, weights: Floats) -> Floats:
    """Return the weighted isotonic (non-decreasing) regression of ``values``, by pool adjacent violators."""
    pools: list[tuple[float, float, int]] = []  # (mean, weight, length)
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, other, length = pools.pop()
            total = other + pool[1]
            pool = ((mean * other + pool[0] * pool[1]) / total, total, length + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])
