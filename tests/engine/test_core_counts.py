"""Prompt tokens count once, when the prompt is through, whatever becomes of the request."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core import EngineCore
from engine.plan import Span
from tests.conftest import BuildCheckpoint
from tests.golden.reference import Golden, load_golden, request
from tests.golden.speculating import plain_core, target_of


@pytest.fixture
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("llava"))


def until_idle(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def test_a_prompt_counts_when_its_last_token_is_computed(golden: Golden) -> None:
    core, prompt = plain_core(golden, max_num_batched_tokens=16), golden.prompt("What is this? " * 6, (1,))
    core.add(request("a", prompt, max_tokens=5, ignore_eos=True))
    counted = []
    while core.has_work:
        counted.append(core.step().stats.prompt_tokens)
        running = core.scheduler.running
        assert bool(counted[-1]) == (not running or running[0].num_output_tokens > 0)
    assert counted.count(0) > 2
    assert set(counted) == {0, len(prompt.token_ids)}


def test_a_prompt_counts_where_no_token_is_asked_for(golden: Golden) -> None:
    core, prompt = plain_core(golden), golden.prompt("Hello")
    core.add(request("a", prompt, max_tokens=0))
    until_idle(core)
    assert core.stats.prompt_tokens == len(prompt.token_ids)


def test_who_leaves_before_counts_nothing(golden: Golden) -> None:
    core = plain_core(golden, max_num_seqs=1, max_num_batched_tokens=16)
    first, second = golden.prompt("Hello"), golden.prompt("Another question, which is longer. " * 6)
    core.add(request("first", first, max_tokens=10, ignore_eos=True))
    core.add(request("waits", second, max_tokens=10))
    while not core.stats.prompt_tokens:
        core.step()
    core.abort(["waits"])
    until_idle(core)
    assert core.stats.prompt_tokens == len(first.token_ids)
    core.add(request("has begun", second, max_tokens=10))
    core.step()
    assert core.scheduler.running[0].num_computed > 0
    core.abort(["has begun"])
    until_idle(core)
    assert core.stats.prompt_tokens == len(first.token_ids)


@pytest.mark.parametrize("steps", [0, 3])
def test_who_fails_counts_if_the_prompt_was_through(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    core, prompt = plain_core(golden), golden.prompt("Hello")
    core.add(request("a", prompt, max_tokens=10, ignore_eos=True))
    for _ in range(steps):
        core.step()

    def full(spans: list[Span]) -> Any:
        raise MemoryError

    monkeypatch.setattr(core._runner, "run", full)
    assert [one.finish_reason for one in core.step().outputs] == ["error"]
    assert core.stats.prompt_tokens == (len(prompt.token_ids) if steps else 0)


def test_a_preempted_prompt_counts_once(golden: Golden) -> None:
    prompts = [golden.prompt(f"Story {i}") for i in range(6)]
    longest = max(len(prompt.token_ids) for prompt in prompts) + 40
    page_bytes = target_of(golden.folder)[0].kv_shape.bytes_per_token * 4
    core = plain_core(
        golden,
        max_num_seqs=6,
        kv_cache_memory=(-(-longest // 4) + 8) * page_bytes,
        max_model_len=longest,
    )
    for i, prompt in enumerate(prompts):
        core.add(request(str(i), prompt, max_tokens=40, ignore_eos=True))
    until_idle(core)
    assert core.stats.num_preemptions > 0
    assert core.stats.prompt_tokens == sum(len(prompt.token_ids) for prompt in prompts)
