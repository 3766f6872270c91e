"""The compressors' table: its rows, what they cost, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from benchmarks.compressor_attention import Attended, class_attention
from benchmarks.compressor_ways import costs, ways_of
from benchmarks.compressors import interval
from compressors.base import Picture
from compressors.elastic import BranchConfig, Elastic, ElasticConfig
from engine.draft_files import DraftConfig, OwnDraft
from processing.prompt import ImageInput
from tests.conftest import BuildCheckpoint
from tests.models import IMAGE_SIZE, TOKENS_PER_IMAGE
from training.student import new_draft

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
    plain, trained = (list(ways_of(own_draft(trained=t), [3, 20], {})) for t in (False, True))
    assert plain[0] == trained[0] == "none"
    assert {"prune-3", "prune-20", "pool-20", "text_only"} <= set(plain) < set(trained)
    more = {"conv-3", "resampler-3", "resampler-20", "select (trained)", "weight-3, even"}
    assert set(trained) - set(plain) == more | {"concat(pool-20,conv-3,resampler-50)"}


def test_fewer_tokens_cost_less() -> None:
    draft = own_draft(trained=True)
    ways = ways_of(draft, [5], {})
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


def test_pruning_by_attention_keeps_what_the_towers_class_token_sees(tiny: BuildCheckpoint) -> None:
    pixels = np.random.default_rng(0).normal(size=(1, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    image = ImageInput(hash=b"a", spans=[(0, TOKENS_PER_IMAGE)], tensors={"pixel_values": pixels})
    scores = class_attention(tiny("llava"), [image])
    assert 0 < float(scores[b"a"].sum()) < 1, "shares of its attention; it looks at itself too"
    picture = Picture(((1, TOKENS_PER_IMAGE),), b"a")
    inputs = torch.randn(TOKENS_PER_IMAGE, HIDDEN)
    [kept] = Attended(2, scores)(inputs, [picture])
    assert set(kept.sources.tolist()) == set(scores[b"a"].topk(len(kept.sources)).indices.tolist())
    assert class_attention(tiny("qwen2_vl"), [image]) == {}
