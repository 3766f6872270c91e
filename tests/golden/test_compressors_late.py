"""Pictures whose branch could not be chosen in time, or that no draft saw: the text is right all the same."""

from __future__ import annotations

import pytest

from compressors.elastic import BranchConfig, ElasticConfig
from engine.messages import SpeculativeParams
from tests.conftest import BuildCheckpoint
from tests.golden.reference import load_golden
from tests.golden.speculating import asking, run_all
from tests.golden.test_compressors import NUM_TOKENS, ask, check, core_with
from tests.golden.test_families import SMALL, TALL, WIDE


def test_a_gate_that_cannot_wait_for_the_end_of_a_long_prompt_gives_way(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that would not all have room until their question is known take the strongest branch, so that
    the draft goes on; later ones are still left to the gate.
    """
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt("Which?", [SMALL, TALL, WIDE])]
    second, third = prompts[0].images[1:]
    rows = third.start - 4
    assert len(prompts[0].token_ids) <= 2 * rows, "the second step must see the question"
    elastic = ElasticConfig(
        "select", (BranchConfig("conv", 4), BranchConfig("resampler", 9), BranchConfig("pool", 3))
    )
    branches: list[list[str | None]] = []
    for limit in (8192, second.start + 5):
        monkeypatch.setattr("engine.draft.features.MAX_WAITING", limit)
        monkeypatch.setattr("engine.draft.follower.CATCH_UP_TOKENS", 1)
        core = core_with(golden, prompts, elastic, max_num_batched_tokens=rows)
        story = run_all(core, [(0, ask("0", prompts[0], "auto"))])
        assert check(golden, prompts, story, f"room for {limit}") > 0, "the draft was given up"
        told = story["0"].end.speculation
        assert told is not None
        branches.append([shown.compressor for shown in told.pictures])
    by_gate, hurried = branches
    assert by_gate[2] != "resampler-9", "the test shows nothing"
    assert hurried == ["resampler-9", "resampler-9", by_gate[2]]


def test_a_picture_that_no_draft_saw_stays_unseen_while_it_is_cached(tiny: BuildCheckpoint) -> None:
    """Nothing is computed again for a draft, whatever branch is asked for (docs/api.md)."""
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt(text, [SMALL]) for text in ("What?", "Where is it, and why?")]
    core = core_with(golden, prompts)
    without = asking("0", prompts[0], max_tokens=NUM_TOKENS, speculative=SpeculativeParams(enabled=False))
    check(golden, prompts, run_all(core, [(0, without)]), "no speculation")
    for salt, branch in (("", None), ("fresh", "pool-3")):
        story = run_all(core, [(0, ask("1", prompts[1], "pool", salt=salt))])
        check(golden, prompts, story, f"salt {salt!r}")
        told = story["1"].end.speculation
        assert told is not None
        assert [shown.compressor for shown in told.pictures] == [branch]
