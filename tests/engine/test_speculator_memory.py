"""Where memory runs out while drafting, answers stay right and speculation goes on; other errors end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.config import NO_SPECULATION
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.ngram_drafter import NgramDrafter
from engine.messages import SpeculativeParams
from engine.speculation.speculator import Speculator
from tests.conftest import BuildCheckpoint
from tests.engine.test_eagle_drafter import NUM_TOKENS, ask, check, play, watched
from tests.engine.test_speculator import CHAIN, LIMITS, Fixed, running
from tests.engine.trees import candidates_of
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import core_of, eagle, given, prompts_of, run_all

HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB"), HOST]


@pytest.fixture
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("llava"))


def fails(real: Callable[..., Any], when: Callable[..., bool], *, late: bool = False) -> Callable[..., Any]:
    """``late``: when its work is done."""

    def failing(*args: Any, **how: Any) -> Any:
        result = real(*args, **how) if late else None
        if when(*args):
            raise MemoryError
        return result if late else real(*args, **how)

    return failing


def every(count: int) -> Callable[..., bool]:
    calls = 0

    def now(*args: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls % count == 0

    return now


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stage", ["propose", "follow", "keep", "ready"])
def test_a_step_without_memory_is_one_without_drafts(
    stage: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, drafter = running([SpeculativeParams()]), Fixed(candidates_of([CHAIN]))
    speculator = Speculator(drafter, LIMITS)

    def full(*args: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(drafter, stage, full)
        for _ in range(5):
            assert bool(speculator.draft(scheduler)) is (stage == "keep")
            speculator.keep([], None)  # type: ignore[arg-type]
    assert speculator.draft(scheduler).keys() == {"0"}
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, not every step"
    assert "memory" in caplog.text


def test_the_warning_comes_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, drafter = running([SpeculativeParams()]), Fixed(candidates_of([CHAIN]))
    speculator, now = Speculator(drafter, LIMITS), 1000.0
    monkeypatch.setattr(drafter, "propose", fails(drafter.propose, every(1)))
    monkeypatch.setattr("engine.speculation.speculator.time.monotonic", lambda: now)
    for _ in range(600):
        speculator.draft(scheduler)
        now += 1
    assert 5 <= len(caplog.records) <= 20


@pytest.mark.parametrize("stage", ["propose", "keep"])
def test_any_other_error_ends_drafting(
    stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler, drafter = running([SpeculativeParams()]), Fixed(candidates_of([CHAIN]))
    speculator = Speculator(drafter, LIMITS)

    def broken(*args: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(drafter, stage, broken)
    speculator.draft(scheduler)
    speculator.keep([], None)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert speculator.draft(scheduler) == {}
    assert "illegal memory access" in caplog.text
    assert speculator.limits == NO_SPECULATION


def test_no_draft_is_opened_for_a_drafter_that_is_gone(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, prompt = core_of(golden, eagle(golden, EagleDrafter, 40)), golden.prompt("Hello")
    monkeypatch.setattr(core._speculator.drafter, "propose", lambda *args: 1 / 0)
    assert not core.stats.drafting_failed
    story = run_all(core, [(0, ask("0", prompt))])["0"]
    golden.compare(story.token_ids, prompt, NUM_TOKENS, "with a draft that breaks")
    assert core.stats.drafting_failed, "nobody is told that this engine is slower than it was"
    core.add(ask("1", prompt))
    core.step()
    (sequence,) = core.scheduler.running
    assert sequence.draft is None


FULL: dict[str, Callable[[Any, pytest.MonkeyPatch], None]] = {
    "reads": lambda d, patch: patch.setattr(d.model, "forward", fails(d.model.forward, every(5))),
    "reads, late": lambda d, patch: patch.setattr(
        d.model, "forward", fails(d.model.forward, every(5), late=True)
    ),
    "takes": lambda d, patch: patch.setattr(
        d._follower.features, "take", fails(d._follower.features.take, every(9))
    ),
    "grows": lambda d, patch: patch.setattr(d, "_in_one_call", fails(d._in_one_call, every(4))),
    "grows, late": lambda d, patch: patch.setattr(
        d, "_in_one_call", fails(d._in_one_call, every(4), late=True)
    ),
    "grows a level": lambda d, patch: patch.setattr(d, "_level_batch", fails(d._level_batch, every(8))),
    "keeps": lambda d, patch: patch.setattr(
        d._follower.features, "_wait", fails(d._follower.features._wait, every(9))
    ),
    "keeps, late": lambda d, patch: patch.setattr(
        d._follower.features, "keep", fails(d._follower.features.keep, every(9), late=True)
    ),
}


@pytest.mark.parametrize("chunk", [13, 300])
@pytest.mark.parametrize("stage", FULL)
def test_the_draft_that_goes_on_holds_what_it_should(
    stage: str, chunk: int, golden: Golden, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In steps and requests that come later, too; long prompts are followed chunk by chunk."""
    monkeypatch.setattr("engine.draft.follower.CATCH_UP_TOKENS", 9)
    monkeypatch.setattr("engine.draft.eagle_drafter.CATCH_UP_TOKENS", 9)
    prompts = prompts_of(golden)
    core, notes = watched(
        golden,
        prompts,
        cpu_kernels=stage != "grows a level",
        max_num_batched_tokens=chunk,
        max_num_encoder_tokens=16,
        enable_prefix_caching=not stage.startswith("keeps"),  # the feature at a page's end may be lost
    )
    with monkeypatch.context() as patch:
        FULL[stage](core._speculator.drafter, patch)
        for attempt in range(3):
            caplog.clear()
            stories = play(core, prompts, gap=attempt)
            assert {record.levelname for record in caplog.records} <= {"WARNING"}
            for i, prompt in enumerate(prompts):
                golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"prompt {i}, {stage}")
    if notes:
        check(golden, notes, trees=False)
    notes.clear()
    play(core, prompts)
    assert {note.request_id for note in notes} == {"0", "1", "2", "3"}, "speculation ended"
    check(golden, notes, trees=False)


def test_a_prompt_too_long_for_the_draft_costs_nobody_else_theirs(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.draft.eagle_drafter.CATCH_UP_TOKENS", 30)
    prompts = [golden.prompt("Hello"), golden.prompt("The quick brown fox. " * 12), golden.prompt("1 2 3")]
    core, notes = watched(golden, prompts)
    model: Any = core._speculator.drafter.model  # type: ignore[union-attr]
    too_long = fails(model.forward, lambda context, inputs: len(inputs) > 40)
    monkeypatch.setattr(model, "forward", too_long)
    real = core.step

    def step() -> Any:
        report = real()
        drafts = [sequence.draft for sequence in core.scheduler.running if sequence.draft is not None]
        assert all(len(draft.table.pages) == -(-draft.num_slots // 4) for draft in drafts), "pages of a tree"
        return report

    monkeypatch.setattr(core, "step", step)
    stories = run_all(core, [(2 * (i == 1), ask(str(i), prompt)) for i, prompt in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"prompt {i}")
    assert stories["1"].histogram == []
    for name in ("0", "2"):
        speculation = stories[name].end.speculation
        assert speculation is not None
        assert speculation.num_spec_tokens > NUM_TOKENS - 5, "it lost its draft"
    check(golden, notes)


def test_what_waits_for_a_draft_that_was_given_up_is_given_back(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short, of all places."""
    core, prompt = core_of(golden, eagle(golden, EagleDrafter, 40)), golden.prompt("Hello " * 20)
    drafter: Any = core._speculator.drafter
    monkeypatch.setattr(drafter, "_in_one_call", fails(drafter._in_one_call, every(1)))
    core.add(ask("0", prompt))
    core.step()
    assert len(drafter._follower.features._waiting) == 1
    core.step()
    assert len(drafter._follower.features._waiting) == 0
    assert drafter.pages.pool.num_available == drafter.pages.pool.num_pages
    (sequence,) = core.scheduler.running
    assert sequence.draft is None


def test_look_up_goes_on_after_it(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    source, prompt = NgramDrafter(frozenset()), golden.prompt("a b a b a b a b")
    core = core_of(golden, given(source))
    fail = iter([True, False, True])
    failing = fails(source._ngrams.extend, lambda *args: next(fail, False))
    monkeypatch.setattr(source._ngrams, "extend", failing)
    story = run_all(core, [(0, ask("0", prompt))])["0"]
    golden.compare(story.token_ids, prompt, NUM_TOKENS, "looked up")
    assert story.histogram
