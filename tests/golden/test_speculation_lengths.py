"""How many drafts are accepted, exactly: right ones, wrong ones, and where an answer ends inside a path."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from engine.config import SpeculativeConfig
from engine.draft.eagle_drafter import EagleDrafter
from engine.messages import SpeculativeParams
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden import drafts
from tests.golden.drafts import Oracle, Scattered
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import (
    LIMITS,
    asking,
    core_of,
    eagle,
    given,
    num_accepted,
    plain_core,
    prompts_of,
    run_all,
)

WRONG_AT = {str(i): i for i in range(5)}  # 0: never


def rounds_to(num_tokens: int, depth: int, wrong: int = 0) -> list[int]:
    """Accepted drafts of each round, counted: of chains ``depth`` deep that are wrong at depth ``wrong``. The
    first token comes from the prompt.
    """
    histogram, left = [0] * (depth + 1), num_tokens - 1
    while left > 1:
        drafted = min(depth, left - 1)
        accepted = min(drafted, wrong - 1) if wrong else drafted
        histogram[accepted] += 1
        left -= accepted + 1
    while histogram and not histogram[-1]:
        histogram.pop()
    return histogram


def free_running(golden: Golden, prompts: list[Prompt], num_tokens: int) -> dict[str, list[int]]:
    """Greedy answers that no EOS ends."""
    arrivals = [(0, asking(str(i), p, max_tokens=num_tokens, ignore_eos=True)) for i, p in enumerate(prompts)]
    return {name: story.token_ids for name, story in run_all(plain_core(golden), arrivals).items()}


def test_an_oracle_is_accepted_whole_and_an_error_ends_its_round_there(tiny: BuildCheckpoint) -> None:
    """Exact rounds, ragged over a batch: request i is wrong at depth i, request 0 never."""
    golden = load_golden(tiny("llama"))
    prompts = [golden.prompt(f"Tell me about {i}.") for i in range(5)]
    answers = free_running(golden, prompts, 30)
    core = core_of(golden, given(Oracle(answers, WRONG_AT)), max_num_seqs=5)
    arrivals = [(0, asking(str(i), p, max_tokens=30, ignore_eos=True)) for i, p in enumerate(prompts)]
    stories = run_all(core, arrivals)
    for i in range(5):
        story = stories[str(i)]
        assert story.token_ids == answers[str(i)]
        assert story.histogram == rounds_to(30, LIMITS.num_steps, i), f"wrong at depth {i}"
        stats = story.end.speculation
        assert stats is not None
        assert stats.num_spec_steps == sum(story.histogram)
        assert stats.num_spec_tokens == stats.num_accepted_draft_tokens + stats.num_spec_steps
    whole = stories["0"].end.speculation
    assert whole is not None
    assert whole.num_accepted_draft_tokens == whole.num_draft_tokens
    per_depth = core.stats.spec_accepted_per_depth
    assert per_depth == sorted(per_depth, reverse=True)
    assert sum(per_depth) == core.stats.spec_accepted_tokens == num_accepted(stories)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8, 9, 15])
def test_the_length_limit_cuts_a_path(max_tokens: int, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompt = golden.prompt("Tell me about 0.")
    answers = {"a": free_running(golden, [prompt], 30)["0"]}
    core = core_of(golden, given(Oracle(answers)))
    story = run_all(core, [(0, asking("a", prompt, max_tokens=max_tokens, ignore_eos=True))])["a"]
    assert story.token_ids == answers["a"][:max_tokens]
    assert story.end.finish_reason == "length"
    assert story.histogram == rounds_to(max_tokens, LIMITS.num_steps)


@pytest.mark.parametrize("place", [0, 1, 2, 4, 7])
def test_a_stop_inside_an_accepted_path_ends_there(place: int, tiny: BuildCheckpoint) -> None:
    """The stop token is drafted and accepted with tokens behind it: none of them leaks, nor their pages."""
    golden = load_golden(tiny("llama"))
    prompt = golden.prompt("Tell me about 0.")
    answer = free_running(golden, [prompt], 30)["0"]
    place = next(i for i in range(place, 30) if answer[i] not in answer[:i])
    stop = answer[place]
    for sampling in ({"stop_token_ids": [stop]}, {"stop_token_ids": [stop], "logprobs": 1}):
        core = core_of(golden, given(Oracle({"a": answer, "b": answer})), page_size=1)
        story = run_all(core, [(0, asking("a", prompt, max_tokens=30, **sampling))])["a"]
        assert story.token_ids == answer[: place + 1]
        assert (story.end.finish_reason, story.end.stop_token_id) == ("stop", stop)
        assert len(story.logprobs) == (place + 1 if "logprobs" in sampling else 0)
        stats = story.end.speculation
        assert stats is not None
        assert stats.num_spec_tokens <= place, "tokens behind the stop were counted"
        again = run_all(core, [(0, asking("b", prompt, max_tokens=30, ignore_eos=True))])["b"]
        assert again.token_ids == answer, "pages were shared that held something else"


def test_min_tokens_holds_along_a_path(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompt = golden.prompt("Tell me about 0.")
    answer = free_running(golden, [prompt], 30)["0"]
    one = asking("a", prompt, max_tokens=30, stop_token_ids=[answer[3]], min_tokens=9, ignore_eos=True)
    want = run_all(plain_core(golden), [(0, one)])["a"]
    assert answer[3] not in want.token_ids[:9]
    for guess in (answer, want.token_ids):  # the first drafts the stop token where it is forbidden
        got = run_all(core_of(golden, given(Oracle({"a": guess}))), [(0, one)])["a"]
        assert (got.token_ids, got.end.finish_reason) == (want.token_ids, want.end.finish_reason)


def test_a_trace_tells_each_tree_and_its_walk(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompt = prompts_of(golden)[1]
    answers = {"a": golden.expected(prompt, 20).token_ids}
    core = core_of(golden, given(Scattered(drafts.full, 500, answers)))
    asked = SpeculativeParams(trace=True, num_draft_tokens=30, num_steps=4, topk=3)
    story = run_all(core, [(0, asking("a", prompt, max_tokens=20, speculative=asked))])["a"]
    told = [story.token_ids[0]]  # of the prompt
    for tree in story.rounds:
        assert len(tree.token_ids) == len(tree.parents) <= 30
        path = [-1, *tree.accepted]
        assert [tree.parents[node] for node in tree.accepted] == path[:-1], (
            "a path leads from parent to child"
        )
        told += [*(tree.token_ids[node] for node in tree.accepted), tree.bonus_token_id]
    assert told[: len(story.token_ids)] == story.token_ids
    assert any(len(tree.accepted) > 1 for tree in story.rounds)


def test_limits_of_engine_and_request_hold(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompts = [golden.prompt(f"Tell me about {i}.") for i in range(4)]
    asked = [
        SpeculativeParams(trace=True, num_steps=1),
        SpeculativeParams(trace=True, topk=1),
        SpeculativeParams(trace=True, num_draft_tokens=3),
        SpeculativeParams(trace=True, num_steps=9, topk=9, num_draft_tokens=63),
    ]
    limits = SpeculativeConfig(num_steps=3, topk=4, num_draft_tokens=20)
    core = core_of(golden, eagle(golden, EagleDrafter), speculative=limits)
    arrivals = [
        (0, asking(str(i), prompts[i], max_tokens=8, ignore_eos=True, speculative=one))
        for i, one in enumerate(asked)
    ]
    for name, story in run_all(core, arrivals).items():
        one = asked[int(name)]
        steps, topk, nodes = (one.num_steps or 3), (one.topk or 4), (one.num_draft_tokens or 20)
        assert story.rounds
        for tree in story.rounds:
            depths: list[int] = []
            for parent in tree.parents:
                depths.append(1 if parent < 0 else depths[parent] + 1)
            assert max(depths) <= min(steps, 3), f"request {name}"
            assert max(tree.parents.count(p) for p in tree.parents) <= min(topk, 4), f"request {name}"
            assert len(depths) <= min(nodes, 20), f"request {name}"


def test_trap_7_who_does_not_speculate_pays_for_no_draft(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    core = core_of(golden, eagle(golden, EagleDrafter))
    assert core.scheduler.draft_pages is not None
    pool = core.scheduler.draft_pages.pool
    for asked in (
        SpeculativeParams(enabled=False),
        SpeculativeParams(num_steps=0),
        SpeculativeParams(topk=0),
        SpeculativeParams(num_draft_tokens=0),
    ):
        one = asking("a", golden.prompt("A plain question."), max_tokens=8, speculative=asked)
        assert run_all(core, [(0, one)])["a"].histogram == []
        assert pool.num_free == pool.num_pages, "the draft looked at a request that does not want it"


@pytest.mark.parametrize("where", ["propose", "keep", "ready", "follow"])
def test_a_draft_that_breaks_costs_speed_and_no_answer(where: str, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompts = prompts_of(golden)
    answers = free_running(golden, prompts, 20)
    drafter, calls = Oracle(answers), itertools.count(1)
    working = getattr(drafter, where)

    def breaking(*arguments: Any) -> Any:
        if next(calls) > 3:
            raise RuntimeError("the draft is broken")
        return working(*arguments)

    setattr(drafter, where, breaking)
    core = core_of(golden, given(drafter))
    arrivals = [(i, asking(str(i), p, max_tokens=20, ignore_eos=True)) for i, p in enumerate(prompts)]
    stories = run_all(core, arrivals)
    assert {name: story.token_ids for name, story in stories.items()} == answers
    assert next(calls) == 5, "it must have been asked once more, and never again"
