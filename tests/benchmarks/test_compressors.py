"""The compressors' table: its rows, what they cost, and its intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from benchmarks.compressor_figures import against, best_fixed, interval, together
from benchmarks.compressor_prefill import prefill, prompt_of
from benchmarks.compressor_ways import Way, costs, ways_of
from benchmarks.compressors import main
from compressors.base import Picture, TextOnly, Whole
from compressors.elastic import BranchConfig, Elastic, ElasticConfig, training_free
from compressors.gate import Gate
from engine.draft.files import DraftConfig, OwnDraft, draft_config, save_draft
from tests.conftest import BuildCheckpoint
from tests.models import TOKENS_PER_IMAGE
from tests.training.test_acceptance import make_data, one_batch
from training.acceptance import Acceptance
from training.compression import always
from training.rows import shortened, whole_rows
from training.student import new_draft
from training.teacher import Teacher
from training.unroll import unrolled

HIDDEN = 32


def own_draft(*, trained: bool) -> OwnDraft:
    sizes = {"hidden_size": HIDDEN, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50}
    draft = new_draft(LlamaConfig(**sizes, intermediate_size=48), 0, None)
    branches = tuple(BranchConfig(name, 5) for name in ("pool", "conv", "resampler", "text_only"))
    compressor = Elastic(ElasticConfig("select", branches), HIDDEN, HIDDEN)
    compressor.reset(torch.Generator().manual_seed(0))
    config = DraftConfig(target="t", target_fingerprint="f", model_type="llama", hidden_size=HIDDEN)
    return OwnDraft(draft, None, config, compressor if trained else None)


def test_every_branch_at_every_ratio_that_it_has() -> None:
    plain, trained = (
        list(ways_of(own_draft(trained=t), [3, 20], knows_attention=False)) for t in (False, True)
    )
    assert plain[0] == trained[0] == "none"
    seeing = set(ways_of(own_draft(trained=False), [3, 20], knows_attention=True))
    assert seeing - set(plain) == {"prune_attention-3", "prune_attention-20"}
    assert {"prune-3", "prune-20", "pool-20", "text_only"} <= set(plain) < set(trained)
    more = {"conv-3", "resampler-3", "resampler-20", "select (trained)", "weight-3, even"}
    own = {"pool-5", "conv-5", "resampler-5"}  # at the ratios that the gate chooses among
    assert set(trained) - set(plain) == more | own | {"concat(pool-20,conv-3,resampler-50)"}


def test_fewer_tokens_cost_less() -> None:
    draft = own_draft(trained=True)
    ways = ways_of(draft, [5], knows_attention=False)
    found = {name: costs(draft, way, [Picture(((10, 10),), b"")] * 2, 2) for name, way in ways.items()}
    assert (
        found["none"]["draft_kv_bytes"] == 200 * 2 * 2 * 8 * 2
    )  # tokens, keys and values, heads, size, bytes
    assert found["pool-5"]["draft_kv_bytes"] == found["none"]["draft_kv_bytes"] / 5
    assert found["text_only"]["draft_kv_bytes"] == found["none"]["compressor_flops"] == 0
    assert found["conv-5"]["compressor_flops"] > found["pool-5"]["compressor_flops"]
    prefill = [found[name]["draft_prefill_flops"] for name in ("none", "pool-5", "text_only")]
    assert prefill == sorted(prefill, reverse=True)
    assert found["conv-5"]["parameters"] == sum(
        p.numel() for p in draft.compressor.branch("conv").parameters()
    )  # type: ignore[union-attr]
    assert found["select (trained)"] == {}


def test_intervals_are_of_pairs() -> None:
    """What is 5 % worse in every dialogue is so with certainty, however much dialogues differ."""
    base = np.array([20, 200, 2000, 40])
    assert interval(base * 105 // 100, base) == pytest.approx((1 / 1.05, 1 / 1.05))
    low, high = interval(np.array([10, 30, 20, 20]), np.array([20, 20, 20, 20]))
    assert low < 0.9 < 1.1 < high


def acceptance(rounds: list[int], *, num_kept: int) -> Acceptance:
    """100 tokens gained in each dialogue, in so many rounds."""
    histograms = np.array([[0, count] for count in rounds])
    return Acceptance(histograms, np.full(len(rounds), 100), 0, 0, 100, num_kept)


def test_choosing_is_compared_with_the_best_that_never_changes() -> None:
    draft = own_draft(trained=True)
    ways = ways_of(draft, [3, 5], knows_attention=False)
    found = {name: acceptance([50, 50], num_kept=20) for name in ways}
    found["none"] = acceptance([10, 10], num_kept=100)
    found["pool-1"] = found["none"]
    found["prune-3"] = acceptance([25, 25], num_kept=30)
    found["conv-5"] = acceptance([40, 40], num_kept=20)
    found["select (trained)"] = acceptance([20, 60], num_kept=10)
    bests = best_fixed(draft.compressor, ways, found)
    assert bests == {"in_table": "prune-3", "branch": "conv-5"}, "whole pictures are no branch"
    told = against(found["select (trained)"], {key: found[name] for key, name in bests.items()})
    assert told["to_best_fixed"] == 1.0
    assert told["to_best_fixed_95"] == [round(40 / 60, 4), 2.0]
    assert told["to_best_fixed_in_table"] == round(50 / 80, 4)
    assert "branch" not in best_fixed(
        None, ways_of(own_draft(trained=False), [3], knows_attention=False), found
    )


def test_kinds_of_questions_add_up() -> None:
    one, other = acceptance([10, 20], num_kept=7), acceptance([30], num_kept=0)
    both = together([one, other])
    assert both.histograms[:, 1].tolist() == [10, 20, 30]
    assert (both.length, both.num_visual, both.num_kept) == (300 / 60, 200, 7)


@pytest.fixture
def results(tiny: BuildCheckpoint, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the benchmark on a tiny target, with a draft and a compressor of random weights."""
    folder = tiny("llava")
    config = AutoConfig.from_pretrained(folder).text_config
    draft = new_draft(config, 0, None)
    branches = (BranchConfig("pool", 5), BranchConfig("text_only"))
    compressor = Elastic(ElasticConfig("select", branches), config.hidden_size, config.hidden_size)
    compressor.reset(torch.Generator().manual_seed(0))
    assert isinstance(compressor.gate, Gate)
    torch.nn.init.normal_(compressor.gate.out.weight, std=100.0, generator=torch.Generator().manual_seed(0))
    save_draft(tmp_path / "draft", draft, draft_config(config, "t", folder), None, compressor)

    def run(capsys: pytest.CaptureFixture[str], **counts: int) -> dict[str, Any]:
        numbers = [part for name, count in counts.items() for part in (f"--{name}", str(count))]
        where = [str(tmp_path / "out"), "--draft", str(tmp_path / "draft"), "--model", str(folder)]
        main([*where, *numbers, "--ratios", "5", "--steps", "2"])
        captured = capsys.readouterr()
        told: dict[str, Any] = json.loads(captured.out)["results"][str(tmp_path / "draft")]
        return told | {"markdown": captured.err}

    return run


def test_the_whole_table_with_kinds_of_questions_and_costs(
    results: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    told = results(capsys, one=6, six=2)
    one, six = told["tables"]
    assert one["dialogues_by_kind"] == {"picture": 4, "aside": 2}
    assert six["dialogues_by_kind"] == {"album": 2}
    for table in (one, six):
        ways = table["ways"]
        assert {"none", "pool-5", "text_only", "select (trained)"} <= set(ways)
        gated = ways["select (trained)"]
        chosen = Counter[str]()
        for kind in gated["by_kind"].values():
            chosen.update(kind["branches"])
        assert chosen == gated["branches"]
        assert (
            ways["text_only"]["draft_kv_bytes"] <= gated["draft_kv_bytes"] <= ways["pool-5"]["draft_kv_bytes"]
        )
        assert all(way["draft_prefill_ms"] > 0 for way in ways.values())
        assert table["best_fixed"]["branch"] in ("pool-5", "text_only")
        low, high = gated["to_best_fixed_95"]
        assert low <= gated["to_best_fixed"] <= high
    assert six["ways"]["none"]["draft_kv_bytes"] == 6 * one["ways"]["none"]["draft_kv_bytes"]
    assert all(f"{kind}: " in told["markdown"] for kind in ("picture", "aside", "album"))


def test_other_counts_are_other_dialogues(
    results: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [table["dialogues"] for table in results(capsys, one=3, six=1)["tables"]] == [3, 1]
    assert [table["dialogues"] for table in results(capsys, one=6, six=1)["tables"]] == [6, 1]


def test_what_is_timed_is_the_prefill_that_training_knows(tiny: BuildCheckpoint, tmp_path: Path) -> None:
    teacher = Teacher.load(tiny("llava"), "float32", torch.device("cpu"))
    draft = new_draft(teacher.text_config, 0, None)
    batch = one_batch(make_data(tiny("llava"), tmp_path), [[1]])
    prompt = prompt_of(batch, teacher)
    assert prompt.placed
    seen = prompt.seen
    whole = whole_rows(draft, seen.embeddings, seen.features, seen.positions, batch.dialogues)
    for compressor in (Whole(), training_free("pool", 3), TextOnly()):
        rows = shortened(whole, prompt.placed, [compressor])
        (states,) = unrolled(draft, rows, 1)
        found = prefill(draft, Way(always(compressor)), prompt)
        torch.testing.assert_close(found, states[:, : found.shape[1]])
        kept = prompt.length - TOKENS_PER_IMAGE + compressor.num_kept(prompt.placed[0].picture)
        assert found.shape[1] == kept
