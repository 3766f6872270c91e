"""An EAGLE-3 draft in its authors' layout, run by the engine: pages and taps against its paper's formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig, SpeculativeConfig
from engine.core import EngineCore
from engine.draft.base import Drafter
from engine.draft.candidates import Candidates
from engine.draft.choose import choose_drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.sequence import Sequence
from engine.sizing import Sizes
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.engine import published_layouts as layouts
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import asking, prompts_of, run_all

LAYERS = [0, 1, 3]
NUM_TOKENS, TOPK = 12, 4


@pytest.fixture
def golden(tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch) -> Golden:
    found = load_golden(tiny("llama"))
    config = found.model.config
    for name, size in {
        "VOCAB": config.vocab_size,
        "HIDDEN": config.hidden_size,
        "HEADS": config.num_attention_heads,
        "KV_HEADS": config.num_key_value_heads,
    }.items():
        monkeypatch.setattr(layouts, name, size)
    return found


def write(golden: Golden, folder: Path) -> tuple[Path, layouts.Tensors]:
    own = golden.model.config
    token_ids = torch.arange(5, own.vocab_size, 9)
    tensors = layouts.eagle3(token_ids, heads=own.num_attention_heads, kv_heads=own.num_key_value_heads)
    config = layouts.CONFIG | {
        "hidden_size": own.hidden_size,
        "num_attention_heads": own.num_attention_heads,
        "num_key_value_heads": own.num_key_value_heads,
        "vocab_size": own.vocab_size,
        "draft_vocab_size": len(token_ids),
        "eagle_aux_hidden_state_layer_ids": LAYERS,
    }
    return layouts.write(folder, tensors, config), tensors


@torch.no_grad()
def plain_scores(golden: Golden, tensors: layouts.Tensors, token_ids: list[int]) -> dict[int, float]:
    """Log-probabilities of the likeliest tokens after these, from one forward without cache or pages."""
    seen = golden.model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states
    entering = [*seen[:-1]]  # hidden states that enter layer i; what leaves the last is not normed here
    with_last: list[torch.Tensor] = []
    handle = golden.model.model.norm.register_forward_pre_hook(lambda _, args: with_last.append(args[0]))
    golden.model(torch.tensor([token_ids]))
    handle.remove()
    features = torch.cat([[*entering, with_last[0]][layer][0] for layer in LAYERS], dim=-1)
    states = (features @ tensors["fc.weight"].T)[:-1]
    states = torch.cat([torch.zeros_like(states[:1]), states])
    embeddings = golden.model.get_input_embeddings()(torch.tensor(token_ids))
    angles = layouts.angles_of(torch.arange(len(token_ids)))
    out = layouts.plain_eagle3(tensors, "midlayer.", states, embeddings, angles)
    scores = layouts.plain_head(tensors, out[-1]).log_softmax(-1)
    best = scores.topk(TOPK)
    ids = best.indices + tensors["d2t"][best.indices]
    return dict(zip(ids.tolist(), best.values.tolist(), strict=True))


def test_it_proposes_what_its_formulas_say_and_changes_nothing(golden: Golden, tmp_path: Path) -> None:
    folder, tensors = write(golden, tmp_path / "draft")
    proposed: list[tuple[list[int], dict[int, float]]] = []

    class Watched(EagleDrafter):
        def propose(self, sequences: list[Sequence], num_steps: int, topk: int) -> Candidates:  # type: ignore[override]
            found = super().propose(sequences, num_steps, topk)
            for row, sequence in enumerate(sequences):
                first = np.flatnonzero((found.depths[row] == 1) & np.isfinite(found.scores[row]))
                scores = {int(found.token_ids[row, i]): float(found.scores[row, i]) for i in first}
                proposed.append((list(sequence.token_ids), scores))
            return found

    def make(config: EngineConfig, target: TargetModel, sizes: Sizes) -> Drafter | None:
        drafter = choose_drafter(config, target, sizes)
        assert isinstance(drafter, EagleDrafter)
        drafter.__class__ = Watched
        return drafter

    config = EngineConfig(
        model=str(golden.folder),
        device="cpu",
        draft=str(folder),
        page_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        kv_cache_memory=1 << 22,
        speculative=SpeculativeConfig(num_steps=3, topk=TOPK, num_draft_tokens=10),
    )
    core = EngineCore(config, TargetModel.load(config), read_eos_token_ids(config), make)
    prompts = prompts_of(golden)
    arrivals = [(2 * i, asking(str(i), p, max_tokens=NUM_TOKENS)) for i, p in enumerate(prompts)]
    stories = run_all(core, arrivals)
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"prompt {i}")
    assert len(proposed) >= len(prompts) * (NUM_TOKENS - 2) // 2
    for token_ids, scores in proposed:
        assert scores == pytest.approx(plain_scores(golden, tensors, token_ids), rel=1e-3, abs=1e-3)
