"""Figures of the compressors' table: acceptance lengths, and their comparison over the same answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.compressor_ways import Way, parameters
from compressors.elastic import Elastic
from training.acceptance import Acceptance

RESAMPLES = 4000
HOW_BEST = (
    "the fixed branch with the greatest acceptance length on these same dialogues, a choice in hindsight "
    "that favours it: among the gate's branches at their own ratios (branch), and among all rows of the "
    "table that compress (in_table)"
)


def together(parts: Sequence[Acceptance]) -> Acceptance:
    """Merge the dialogues of several walks."""
    return Acceptance(
        np.concatenate([one.histograms for one in parts]),
        np.concatenate([one.gained for one in parts]),
        sum(one.num_greedy for one in parts),
        sum(one.num_predicted for one in parts),
        sum(one.num_visual for one in parts),
        sum(one.num_kept for one in parts),
    )


def describe(found: Acceptance, base: Acceptance) -> dict[str, Any]:
    """Describe acceptance relative to ``base``, that with whole pictures."""
    ratio, bounds = compared(found, base)
    return {
        "acceptance_length": round(found.length, 4),
        "to_whole_pictures": ratio,
        "to_whole_pictures_95": bounds,
        "visual_tokens_kept": round(found.num_kept / max(1, found.num_visual), 4),
        "accepted_per_depth": found.describe()["accepted_per_depth"],
    }


def best_fixed(
    compressor: Elastic | None, ways: Mapping[str, Way], found: Mapping[str, Acceptance]
) -> dict[str, str]:
    """Return the names of the best ways that are the same for every picture (see ``HOW_BEST``).

    ``branch``: the best branch of a selecting gate. ``in_table``: the best of all.
    """
    lengths = {
        name: found[name].length
        for name, way in ways.items()
        if way.fixed is not None and found[name].num_kept < found[name].num_visual
    }
    named = {} if not lengths else {"in_table": max(lengths, key=lengths.__getitem__)}
    if compressor is not None and compressor.config.mode == "select":
        own = [way.tag for way in compressor.ways]
        named["branch"] = max(own, key=lambda tag: found[tag].length)
    return named


def against(found: Acceptance, bests: Mapping[str, Acceptance]) -> dict[str, Any]:
    """Compare a gated way with the best fixed ones, in pairs of dialogues."""
    told: dict[str, Any] = {}
    for key, suffix in (("branch", ""), ("in_table", "_in_table")):
        if key in bests:
            told[f"to_best_fixed{suffix}"], told[f"to_best_fixed{suffix}_95"] = compared(found, bests[key])
    return told


def compared(found: Acceptance, base: Acceptance) -> tuple[float, list[float]]:
    """Return the ratio of two acceptance lengths over the same answers, and its 95 % interval."""
    low, high = interval(found.histograms.sum(1), base.histograms.sum(1))
    return round(found.length / base.length, 4), [round(low, 4), round(high, 4)]


def interval(rounds: npt.NDArray[np.int64], base: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of two acceptance lengths over the same answers.

    ``rounds`` and ``base``: number of rounds in each dialogue, int64 ``[D]``. Both gain the same tokens, so
    the ratio is that of the rounds, inverted.
    """
    drawn = np.random.default_rng(0).integers(0, len(rounds), (RESAMPLES, len(rounds)))
    low, high = np.quantile(base[drawn].sum(1) / np.maximum(1, rounds[drawn].sum(1)), (0.025, 0.975))
    return float(low), float(high)


def by_choice(
    compressor: Elastic | None, costs: Mapping[str, Mapping[str, Any]], taken: Counter[str]
) -> dict[str, Any]:
    """Return the costs of a gated way: the mean over its choices, without the cost of choosing.

    Empty if it chooses a way that has no row of its own.
    """
    if compressor is None or not taken or not taken.keys() <= costs.keys():
        return {}
    means = {
        name: round(sum(count * costs[tag][name] for tag, count in taken.items()) / taken.total())
        for name in ("draft_kv_bytes", "compressor_flops", "draft_prefill_flops")
    }
    return means | {"parameters": parameters(compressor)}
