"""The engine's greedy tokens equal ``transformers.generate``, however the work is cut up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.core import EngineCore
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.reference import Golden, load_golden, request, run_core
from tests.golden.speculating import prompts_of
from tests.models import FAMILIES, Family

NUM_TOKENS = 20


def load(golden: Golden, **settings: Any) -> EngineCore:
    defaults = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "kv_cache_memory": 1 << 22}
    return EngineCore.load(EngineConfig(model=str(golden.folder), device="cpu", **(defaults | settings)))


def check_all(golden: Golden, core: EngineCore, prompts: list[Prompt], gap: int, where: str) -> None:
    arrivals = [(i * gap, request(str(i), p, max_tokens=NUM_TOKENS)) for i, p in enumerate(prompts)]
    run = run_core(core, arrivals)
    for i, prompt in enumerate(prompts):
        golden.compare(run.token_ids[str(i)], prompt, NUM_TOKENS, f"{where}, prompt {i}")


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_together_over_page_and_chunk_sizes(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    ways = itertools.product((1, 5, 16), (4, 23, 512), (0, 3))
    for (page_size, chunk, gap), cpu_kernels in zip(ways, itertools.cycle((True, False)), strict=False):
        core = load(golden, page_size=page_size, max_num_batched_tokens=chunk, cpu_kernels=cpu_kernels)
        check_all(golden, core, prompts, gap, f"{family}: pages of {page_size}, chunks of {chunk}, gap {gap}")
    assert golden.near_ties <= 2, "near-ties should be rare with these weights"


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_hits_change_nothing(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    core = load(golden, page_size=4)
    check_all(golden, core, prompts, 0, f"{family}: cold")
    check_all(golden, core, prompts, 0, f"{family}: warm")
    hits = core.stats.prefix_cache_hits
    assert hits >= sum(len(p.token_ids) // 4 * 4 - 4 for p in prompts), "the second round hit too little"


def test_a_prefix_hit_ends_inside_a_picture(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    # Same text before the picture, two pictures after each other: the second differs, so that the shared
    # prefix ends somewhere in the middle of pages and pictures for every page size.
    first, second = golden.prompt("Compare.", (1, 2)), golden.prompt("Compare.", (1, 3))
    for page_size in (3, 4, 7, 16):
        core = load(golden, page_size=page_size)
        check_all(golden, core, [first], 0, f"first, pages of {page_size}")
        check_all(golden, core, [second], 0, f"second, pages of {page_size}")
        assert core.stats.prefix_cache_hits > 0


def test_pictures_with_the_same_tokens_do_not_share_pages(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt("What?", (seed,)) for seed in range(4)]
    assert len({tuple(p.token_ids) for p in prompts}) == 1
    core = load(golden, page_size=4)
    check_all(golden, core, prompts, 2, "same tokens, other pictures")
    answers = {tuple(golden.expected(p, NUM_TOKENS).token_ids) for p in prompts}
    assert len(answers) == len(prompts), "the test model must see the difference"


@pytest.mark.parametrize("family", FAMILIES)
def test_preemption_changes_nothing(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    longest = max(len(p.token_ids) for p in prompts) + NUM_TOKENS
    page_bytes = (1 << 20) // load(golden, page_size=4, kv_cache_memory=1 << 20).info.num_pages
    for caching in (True, False):
        core = load(
            golden,
            page_size=4,
            kv_cache_memory=(longest // 4 + 7) * page_bytes,
            max_model_len=longest,
            enable_prefix_caching=caching,
        )
        check_all(golden, core, prompts * 2, 1, f"{family}: few pages, caching {caching}")
        assert core.stats.num_preemptions > 0, "the test must preempt"


def test_salt_separates_caches(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompt = golden.prompt("What is this?", (1,))
    core = load(golden, page_size=4)
    run = run_core(core, [(0, request("a", prompt, max_tokens=4, salt="one"))])
    run = run_core(core, [(0, request("b", prompt, max_tokens=4, salt="two"))])
    assert run.cached["b"] == 0
    run = run_core(core, [(0, request("c", prompt, max_tokens=4, salt="one"))])
    assert run.cached["c"] > 0


def test_identical_prompts_at_once_compute_the_prompt_once(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompt = golden.prompt("What is this?", (1,))
    core = load(golden, page_size=4)
    run = run_core(core, [(0, request(str(i), prompt, max_tokens=NUM_TOKENS)) for i in range(4)])
    for i in range(4):
        golden.compare(run.token_ids[str(i)], prompt, NUM_TOKENS, f"twin {i}")
    assert sorted(run.cached.values()) == [0] + [(len(prompt.token_ids) - 1) // 4 * 4] * 3
