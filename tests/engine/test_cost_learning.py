"""What steps cost is learned from the steps that ran, and what they ran is told."""

from __future__ import annotations

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.draft.choose import choose_drafter
from engine.speculation.budget import SpeculationBudget
from engine.speculation.costs import CostTable, DraftCosts
from engine.target import TargetModel
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.reference import request

ABSURD_SECONDS = 1000.0


@pytest.mark.parametrize("draft", ["ngram", "none"])
def test_steps_teach_the_budget_and_tell_their_trees(draft: str, tiny: BuildCheckpoint) -> None:
    config = EngineConfig(model=str(tiny("llama")), device="cpu", draft=draft, kv_cache_memory=1 << 22)
    free = DraftCosts(CostTable({1: 1e-9}))
    budget = SpeculationBudget(CostTable({1: ABSURD_SECONDS}), free, max_steps=config.speculative.num_steps)
    core = EngineCore(config, TargetModel.load(config), frozenset(), choose_drafter, lambda *_: budget)
    core.add(request("plain", Prompt(token_ids=[9, 10]), max_tokens=8))
    core.add(request("repeats", Prompt(token_ids=[7] * 9), max_tokens=8, logit_bias={7: 100.0}))
    sizes: list[int] = []
    while core.has_work:
        sizes += core.step().tree_sizes
    learned = budget.target.points[1] < ABSURD_SECONDS
    assert learned == (draft == "ngram")
    assert sum(sizes) == core.stats.spec_draft_tokens
    if draft == "ngram":
        assert sum(size > 0 for size in sizes) == core.stats.spec_rounds > 0
        assert 0 in sizes, "a sequence without drafts decodes plainly, and that is told too"
    else:
        assert sizes == []
