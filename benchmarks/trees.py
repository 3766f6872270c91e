"""Measures the effect of limiting the number of tree nodes, and of n-gram lookup in addition to the draft."""

from __future__ import annotations

from typing import Any

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.speculation import PICTURES, Tally, compare, joined
from engine.config import EngineConfig
from engine.draft.base import Drafter
from engine.draft.choose import choose_drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.messages import SpeculativeParams
from engine.sizing import Sizes
from engine.target import TargetModel

NODES = (1, 2, 4, 8, 16, 32)


def measure(settings: Settings) -> dict[str, Any]:
    ours = Ours(settings)
    results: dict[str, Any] = {"unit": "speed-up over plain decoding; temperature 0, one stream"}
    for nodes in NODES:
        limited = SpeculativeParams(num_draft_tokens=nodes)
        results[f"at most {nodes} nodes"] = _both(compare(ours, settings, 0.0, limited, salt=str(nodes)))
    results["without look-up"] = _both(compare(Ours(settings, without_lookup), settings, 0.0))
    results["look-up alone"] = _both(compare(Ours(settings, draft="ngram"), settings, 0.0))
    return results | {"figures": []}


def without_lookup(config: EngineConfig, target: TargetModel, sizes: Sizes) -> Drafter | None:
    """Return the drafter that would be chosen, but without n-gram lookup."""
    drafter = choose_drafter(config, target, sizes)
    if isinstance(drafter, EagleDrafter):
        drafter.lookup = None
    return drafter


def _both(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {
        "all pictures": joined([tallies[kind] for kind in PICTURES]).summary(),
        "free chat": tallies["free chat"].summary(),
    }


if __name__ == "__main__":
    run_measurement(measure)
