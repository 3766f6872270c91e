"""Several threads share every layer's work, as they do outside of tests: the answers stay."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch

from engine.checkpoint import read_eos_token_ids
from engine.config import EngineConfig
from engine.core import EngineCore
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.engine.own_kernels import own_kernels
from tests.golden import drafts
from tests.golden.drafts import Garbage, Oracle
from tests.golden.reference import load_golden
from tests.golden.speculating import LIMITS, asking, given, num_accepted, prompts_of, run_all

NUM_TOKENS = 20


@pytest.fixture
def threads() -> Generator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


def test_several_threads_give_the_answers_of_one(tiny: BuildCheckpoint, threads: int) -> None:
    """Plain, and with trees that are wrong and right; three streams and one."""
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    answers = {str(i): golden.expected(p, NUM_TOKENS).token_ids for i, p in enumerate(prompts)}
    config = EngineConfig(
        model=str(golden.folder),
        device="cpu",
        max_num_seqs=3,
        kv_cache_memory=1 << 22,
        page_size=4,
        speculative=LIMITS,
    )
    own_kernels()
    target = TargetModel.load(config)
    for drafter in (None, Garbage(drafts.mixed, 500), Oracle(answers)):
        core = EngineCore(config, target, read_eos_token_ids(config), given(drafter))
        stories = run_all(
            core, [(0, asking(str(i), p, max_tokens=NUM_TOKENS)) for i, p in enumerate(prompts)]
        )
        for i, prompt in enumerate(prompts):
            golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"{threads} threads, prompt {i}")
    assert num_accepted(stories) > 0
