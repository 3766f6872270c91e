"""A target with parts of the test's choice, through the whole engine, against ``generate``."""

from __future__ import annotations

from typing import Any

from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.kernels.spans import AttentionKernels
from engine.target import TargetModel
from tests.golden.drafts import Scattered, mixed
from tests.golden.reference import Golden, request, run_core


def loaded(golden: Golden, attention: AttentionKernels, **settings: Any) -> tuple[EngineConfig, TargetModel]:
    """On a CPU without its kernels."""
    config = EngineConfig(
        model=str(golden.folder),
        device="cpu",
        page_size=4,
        max_num_seqs=4,
        kv_cache_memory=1 << 21,
        cpu_kernels=False,
        **settings,
    )
    target = TargetModel.load(config)
    target.attention = attention
    return config, target


def check_answers(golden: Golden, config: EngineConfig, target: TargetModel) -> None:
    """Pictures where the family sees, and trees of which a part is accepted."""
    prompts = [golden.prompt("What is this?", (1,) if golden.sees else ()), golden.prompt("Why?")]
    answers = {str(i): golden.expected(prompt, 6).token_ids for i, prompt in enumerate(prompts)}
    drafter = Scattered(mixed, target.vocab_size, answers)
    core = EngineCore(config, target, read_eos_token_ids(config), lambda *_: drafter)
    run = run_core(core, [(i, request(str(i), prompt, max_tokens=6)) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        golden.compare(run.token_ids[str(i)], prompt, 6, f"prompt {i}")
    assert core.stats.spec_accepted_tokens > 0
