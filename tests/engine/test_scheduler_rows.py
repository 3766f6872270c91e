"""Who gets the rows and pages of a step when trees and prompts want more than there are."""

from __future__ import annotations

import numpy as np
import pytest

from engine.config import TreeLimits
from engine.draft.candidates import DraftTree, pick
from engine.encoder_cache import EncoderCache
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.plan import StepLimits, StepPlan
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from processing.prompt import ImageInput, Prompt
from tests.engine.trees import candidates_of

LIMITS = TreeLimits(num_steps=4, topk=3, num_draft_tokens=30)


def scheduler_of(
    max_num_seqs: int = 4, rows: int = 25, *, pages: int = 400, longest_block: int = 0
) -> Scheduler:
    limits = StepLimits(max_num_seqs, rows, 100, longest_block)
    return Scheduler(limits, PagePool(pages), EncoderCache(100), caching=True)


def ask(
    scheduler: Scheduler, number: int, length: int, pictures: list[tuple[int, int]] | None = None
) -> None:
    """``pictures``: (start, length) of each, whose tokens run together."""
    images = [ImageInput(hash=bytes([number]), spans=[span], tensors={}) for span in pictures or []]
    prompt = Prompt(token_ids=[100 + number] * length, images=images)
    sampling = SamplingParams(max_tokens=1000)
    scheduler.add(
        Sequence.from_request(
            GenerateRequest(request_id=str(number), prompt=prompt, sampling=sampling),
            arrival=number,
            table=PageTable(scheduler.pool, 4),
            eos_token_ids=frozenset(),
            max_model_len=3000,
            limits=LIMITS,
            both_ways=bool(pictures),
        )
    )


def growing(scheduler: Scheduler, count: int) -> None:
    """Sequences "0", "1" … that decode."""
    for number in range(count):
        ask(scheduler, number, 1)
    while len(scheduler.growing) < count:
        step(scheduler)


def step(scheduler: Scheduler, sizes: dict[str, int] | None = None) -> StepPlan:
    """With chains of so many nodes, none of which is accepted."""
    plan = scheduler.schedule({name: chain(size) for name, size in (sizes or {}).items()})
    for key in plan.encode:
        scheduler.encoder_cache.put(key, "embeddings")
    assert plan.num_tokens == sum(s.num_rows for s in plan.spans) <= scheduler.limits.max_num_batched_tokens
    for span in plan.spans:
        scheduler.commit(span, [7] if span.samples else [], span.end)
    scheduler.check()
    return plan


def chain(size: int) -> DraftTree:
    candidates = candidates_of([[(5, i - 1) for i in range(size)]])
    (tree,) = pick(candidates, np.isfinite(candidates.scores))
    assert tree is not None
    return tree


def tree_rows(plan: StepPlan) -> int:
    return sum(len(span.tree) for span in plan.spans if span.tree is not None)


def rows_of(plan: StepPlan, name: str) -> int:
    return sum(span.length for span in plan.spans if span.sequence.request_id == name)


def test_trees_do_not_keep_those_who_wait_out() -> None:
    scheduler = scheduler_of()
    growing(scheduler, 2)
    ask(scheduler, 2, 60)
    sizes, steps = {"0": 5, "1": 18}, 0
    while len(scheduler.growing) < 3:
        plan = step(scheduler, sizes)
        assert rows_of(plan, "2") > 0, "it waits behind trees"
        assert tree_rows(plan) == 5, "its prompt leaves a quarter of the rows to trees"
        steps += 1
    assert steps == 4
    assert tree_rows(step(scheduler, sizes)) == 5 + 0, "two and one that decode leave 22 rows"
    assert tree_rows(step(scheduler, {"0": 5, "1": 17})) == 22


def test_trees_do_not_keep_a_running_prompt_waiting() -> None:
    scheduler = scheduler_of()
    growing(scheduler, 2)
    ask(scheduler, 2, 200)
    step(scheduler)
    assert scheduler.running[-1].num_computed == 23
    for size in (23, 11, 3, 5):
        plan = step(scheduler, {"0": size})
        assert tree_rows(plan) == (size if size <= 5 else 0)
        assert rows_of(plan, "2") >= 18


def test_a_long_queue_does_not_end_speculation() -> None:
    scheduler = scheduler_of(max_num_seqs=8)
    growing(scheduler, 2)
    for number in range(2, 30):
        ask(scheduler, number, 100)
    assert all(tree_rows(step(scheduler, {"0": 3, "1": 2})) == 5 for _ in range(20))


def test_short_prompts_start_together() -> None:
    scheduler = scheduler_of(max_num_seqs=8)
    growing(scheduler, 2)
    for number in range(2, 6):
        ask(scheduler, number, 4)
    step(scheduler, {"0": 11, "1": 12})
    assert len(scheduler.growing) == 6


def test_trees_do_not_take_the_pages_of_those_who_wait() -> None:
    """Ten pages are left, the prompt wants eight of them and one for each that runs."""
    scheduler = scheduler_of(rows=100, pages=12)
    growing(scheduler, 2)
    ask(scheduler, 2, 32)
    plan = step(scheduler, {"0": 12, "1": 12})
    assert rows_of(plan, "2") == 32


@pytest.mark.parametrize(("places", "pages"), [(2, 400), (4, 12)])
def test_who_cannot_start_takes_no_row_of_a_tree(places: int, pages: int) -> None:
    """There is no place, or there are too few pages."""
    scheduler = scheduler_of(places, 25, pages=pages)
    growing(scheduler, 2)
    ask(scheduler, 2, 44)
    assert scheduler.prompt_rows == 0
    assert tree_rows(step(scheduler, {"0": 11, "1": 12})) == 23


def test_a_picture_that_must_run_whole_goes_before_trees() -> None:
    scheduler = scheduler_of(2, 20, longest_block=18)
    growing(scheduler, 1)
    ask(scheduler, 1, 21, pictures=[(1, 18)])
    found = [(rows_of(plan, "1"), tree_rows(plan)) for plan in (step(scheduler, {"0": 12}) for _ in range(3))]
    assert found == [(1, 12), (18, 0), (2, 12)]


@pytest.mark.parametrize("length", [3, 60])
@pytest.mark.parametrize("runs", [False, True])
def test_rows_for_prompts_are_told_before(length: int, runs: bool) -> None:
    """For who reckons what trees beside them will cost."""
    scheduler = scheduler_of()
    growing(scheduler, 2)
    assert scheduler.prompt_rows == 0
    ask(scheduler, 2, length + 20 * runs)
    if runs:
        scheduler.limits = StepLimits(4, 22, 100)
        step(scheduler)
        scheduler.limits = StepLimits(4, 25, 100)
    told = scheduler.prompt_rows
    assert told == min(length, 18)
    assert rows_of(step(scheduler, {"0": 5}), "2") == told
