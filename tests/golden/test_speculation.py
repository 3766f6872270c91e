"""Whatever is drafted, the text is that of ``transformers.generate``, and that of plain decoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.ngram_drafter import NgramDrafter
from engine.messages import GenerateRequest, SpeculativeParams, TokenLogprobs
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden import drafts
from tests.golden.drafts import Answers, Garbage, Oracle, Scattered, SteeredEagle
from tests.golden.reference import EPSILON, Golden, load_golden
from tests.golden.speculating import (
    MakeDraft,
    Story,
    asking,
    core_of,
    draft_folder,
    eagle,
    given,
    num_accepted,
    plain_core,
    prompts_of,
    run_all,
    target_of,
)
from tests.models import FAMILIES, Family

NUM_TOKENS = 20
VOCAB = 500  # drawn from by garbage: most of the tiny models' tokens
WRONG_AT = {str(i): i for i in range(5)}  # 0: never

DRAFTS: dict[str, Callable[[Golden, Answers], MakeDraft]] = {
    "garbage chain": lambda golden, answers: given(Garbage(drafts.chain, VOCAB)),
    "garbage wide": lambda golden, answers: given(Garbage(drafts.wide, VOCAB)),
    "garbage of 63 nodes": lambda golden, answers: given(Garbage(drafts.full, VOCAB)),
    "oracle": lambda golden, answers: given(Oracle(answers)),
    "wrong at a depth": lambda golden, answers: given(Oracle(answers, WRONG_AT)),
    "scattered in 63 nodes": lambda golden, answers: given(Scattered(drafts.full, VOCAB, answers)),
    "scattered, mixed sizes": lambda golden, answers: given(Scattered(drafts.mixed, VOCAB, answers)),
    "eagle": lambda golden, answers: eagle(golden, EagleDrafter),
    "eagle, 40 tokens": lambda golden, answers: eagle(golden, EagleDrafter, 40),
    "steered eagle": lambda golden, answers: eagle(golden, SteeredEagle, 40, answers=answers),
    "ngram": lambda golden, answers: given(NgramDrafter(frozenset())),
}


def expected(golden: Golden, prompts: list[Prompt], num_tokens: int = NUM_TOKENS) -> dict[str, list[int]]:
    return {str(i): golden.expected(p, num_tokens).token_ids for i, p in enumerate(prompts)}


def requests_of(prompts: list[Prompt], *plain: int, gap: int = 0) -> list[tuple[int, GenerateRequest]]:
    """Requests "0", "1" … ``gap`` steps apart; those in ``plain`` do not speculate."""
    return [
        (
            i * gap,
            asking(
                str(i),
                prompt,
                max_tokens=NUM_TOKENS,
                speculative=SpeculativeParams(enabled=i not in plain),
            ),
        )
        for i, prompt in enumerate(prompts)
    ]


def check(golden: Golden, prompts: list[Prompt], stories: dict[str, Story], where: str) -> None:
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"{where}, prompt {i}")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_draft_changes_a_token(family: Family, tiny: BuildCheckpoint) -> None:
    """Every draft once, with page sizes, chunks, gaps and batch mixes going round."""
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    answers = expected(golden, prompts)
    ways = zip(itertools.cycle((1, 5, 16)), itertools.cycle((80, 300)), itertools.cycle((0, 2, 1, 3)))
    for number, (name, make) in enumerate(DRAFTS.items()):
        page_size, chunk, gap = next(ways)
        how = {"page_size": page_size, "max_num_batched_tokens": chunk, "cpu_kernels": page_size != 5}
        core = core_of(golden, make(golden, answers), **how)
        where = f"{family}, {name}: pages of {page_size}, rows {chunk}, gap {gap}"
        stories = run_all(core, requests_of(prompts, number % 4, gap=gap))
        check(golden, prompts, stories, where)
        assert stories[str(number % 4)].histogram == [], "a request that did not want it speculated"
        if name in ("oracle", "scattered in 63 nodes", "steered eagle"):
            assert num_accepted(stories) >= 15, f"{where}: too little was accepted to test anything"
    assert golden.near_ties <= 2, "near-ties should be rare with these weights"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DRAFTS)
def test_no_draft_changes_a_token_in_any_way_of_running(
    family: Family, name: str, tiny: BuildCheckpoint
) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    answers = expected(golden, prompts)
    for page_size, chunk, gap in itertools.product((1, 5, 16), (9, 80, 300), (0, 1, 3)):
        make = DRAFTS[name](golden, answers)
        how = {"page_size": page_size, "max_num_batched_tokens": chunk, "cpu_kernels": page_size != 5}
        core = core_of(golden, make, **how)
        for attempt in ("cold", "warm"):
            stories = run_all(core, requests_of(prompts, gap, gap=gap))
            check(golden, prompts, stories, f"{name}, {page_size}, {chunk}, {gap}, {attempt}")


@pytest.mark.parametrize("name", ["scattered in 63 nodes", "steered eagle", "ngram"])
def test_prefix_hits_and_drafts_together_change_nothing(name: str, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    core = core_of(golden, DRAFTS[name](golden, expected(golden, prompts)))
    check(golden, prompts, run_all(core, requests_of(prompts)), f"{name}: cold")
    check(golden, prompts, run_all(core, requests_of(prompts, 2)), f"{name}: warm")
    assert core.stats.prefix_cache_hits >= sum(len(p.token_ids) // 4 * 4 - 4 for p in prompts)


def test_a_trace_shows_nothing_of_what_others_were_answered(tiny: BuildCheckpoint) -> None:
    """Look-up remembers answers: asked again it knows them, but not where its proposals are shown."""
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)[:1]
    core = core_of(golden, given(NgramDrafter(frozenset())))
    run_all(core, requests_of(prompts))
    proposed = {}
    for traced in (False, True):
        ((gap, request),) = requests_of(prompts)
        asked = msgspec.structs.replace(request, speculative=SpeculativeParams(trace=traced))
        before = core.stats.spec_accepted_tokens
        check(golden, prompts, run_all(core, [(gap, asked)]), f"traced: {traced}")
        proposed[traced] = core.stats.spec_accepted_tokens - before
    assert proposed[False] > NUM_TOKENS // 2
    assert proposed[True] < proposed[False] // 2


@pytest.mark.parametrize("name", ["garbage of 63 nodes", "scattered, mixed sizes", "steered eagle"])
@pytest.mark.parametrize("family", ["llava", "mistral_sliding"])
def test_few_pages_and_preemption_change_nothing(family: Family, name: str, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    answers = expected(golden, prompts) | {
        str(i + len(prompts)): tokens for i, tokens in enumerate(expected(golden, prompts).values())
    }
    longest = max(len(p.token_ids) for p in prompts) + NUM_TOKENS
    page_bytes = target_of(golden.folder)[0].kv_shape.bytes_per_token * 4
    core = core_of(
        golden,
        DRAFTS[name](golden, answers),
        kv_cache_memory=(longest // 4 + 7) * page_bytes,
        max_model_len=longest,
    )
    stories = run_all(core, requests_of(prompts * 2, gap=1))
    check(golden, prompts * 2, stories, f"{family}, {name}: few pages")
    assert core.stats.num_preemptions > 0, "the test must preempt"


@pytest.mark.parametrize("name", ["scattered in 63 nodes", "steered eagle"])
def test_aborts_in_the_middle_hurt_nobody(name: str, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    answers = expected(golden, prompts)
    core = core_of(golden, DRAFTS[name](golden, answers))
    stories = run_all(core, requests_of(prompts), aborts={2: ["1"], 4: ["0", "unknown"]})
    for i in ("0", "1"):
        story = stories[i]
        assert story.end.finish_reason == "abort"
        assert story.token_ids == answers[i][: len(story.token_ids)]
    for i in (2, 3):
        golden.compare(stories[str(i)].token_ids, prompts[i], NUM_TOKENS, f"{name}: beside an abort")


def test_a_draft_of_a_folder_is_chosen_loaded_and_changes_nothing(tiny: BuildCheckpoint) -> None:
    from engine.draft.choose import choose_drafter

    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    core = core_of(golden, choose_drafter, draft=str(draft_folder(golden.folder, 40)))
    assert core.info.draft == "eagle"
    check(golden, prompts, run_all(core, requests_of(prompts, gap=1)), "by its folder")


STYLES: list[dict[str, Any]] = [
    {"temperature": 1.0, "logprobs": 2},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 30, "presence_penalty": 0.5, "logprobs": 0},
    {"temperature": 1.0, "min_p": 0.05, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logprobs": 3},
    {"temperature": 0.9, "logit_bias": {70: 4.0, 71: 3.0, 90: -50.0}, "min_tokens": 6},
    {"temperature": 1.0, "stop_token_ids": list(range(100, 130)), "min_tokens": 5},
    {"temperature": 0.0, "min_tokens": 10, "logprobs": 1, "ignore_eos": False},
]


def sampled_requests(golden: Golden) -> list[GenerateRequest]:
    return [
        asking(
            str(i),
            golden.prompt(f"Question {i}: what is in the picture?", (i,) * (i % 3)),
            max_tokens=24,
            seed=100 + i,
            **({"ignore_eos": "stop_token_ids" not in style} | style),
        )
        for i, style in enumerate(STYLES)
    ]


def same_logprobs(ours: list[TokenLogprobs], theirs: list[TokenLogprobs]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose([a.logprob, *a.top_logprobs], [b.logprob, *b.top_logprobs], atol=EPSILON)


def test_seeded_text_and_logprobs_are_those_of_plain_decoding(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    requests = sampled_requests(golden)
    plain = run_all(plain_core(golden, max_num_seqs=8), [(i, one) for i, one in enumerate(requests)])
    answers = {name: story.token_ids for name, story in plain.items()}
    assert len({tuple(tokens) for tokens in answers.values()}) == len(requests)
    assert plain["6"].end.finish_reason == "stop", "the test must stop one of them"
    for name in ("garbage wide", "oracle", "scattered in 63 nodes", "steered eagle"):
        core = core_of(golden, DRAFTS[name](golden, answers), max_num_seqs=8, page_size=5)
        together = run_all(core, [(0, one) for one in requests])
        alone = run_all(core, [(0, requests[3])])  # from the cache, with its draft
        for story, want in [*((together[i], plain[i]) for i in plain), (alone["3"], plain["3"])]:
            assert story.token_ids == want.token_ids, f"{name}: request {want.end.request_id}"
            assert story.end.finish_reason == want.end.finish_reason
            assert story.end.stop_token_id == want.end.stop_token_id
            same_logprobs(story.logprobs, want.logprobs)
        if name == "oracle":
            assert num_accepted(together) > 100, "nearly everything should be accepted"
