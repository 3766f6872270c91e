"""Where memory runs out as little as possible ends: others go on, pages come back, the next one is right."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.messages import RequestError
from engine.plan import Span
from processing.prompt import ImageInput, Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.reference import Golden, load_golden, request, run_core

HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB"), HOST]


@pytest.fixture
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("llava"))


def load(golden: Golden) -> EngineCore:
    config = EngineConfig(
        model=str(golden.folder),
        device="cpu",
        draft="ngram",
        max_num_seqs=8,
        kv_cache_memory=1 << 23,
        page_size=4,
    )
    return EngineCore.load(config)


def failures(core: EngineCore, prompts: dict[str, Prompt], golden: Golden) -> dict[str, RequestError | None]:
    """Run all at once; what ended with an error, and why. The others said what transformers says."""
    real, failed = core.step, {}

    def watched() -> Any:
        report = real()
        failed.update({o.request_id: o.error for o in report.outputs if o.finish_reason == "error"})
        return report

    core.step = watched  # type: ignore[method-assign]
    run = run_core(core, [(0, request(name, prompt, max_tokens=8)) for name, prompt in prompts.items()])
    core.step = real  # type: ignore[method-assign]
    assert set(run.reasons) == set(prompts)
    for name in prompts.keys() - failed.keys():
        golden.compare(run.token_ids[name], prompts[name], 8, name)
    assert core.stats.kv_cache_usage == 0.0
    return failed


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pictures_that_fit_alone_are_encoded_alone(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    core = load(golden)
    prompts = {f"p{seed}": golden.prompt("What?", (seed,)) for seed in range(4)}
    real, (huge,) = core.target.adapter.encode_images, prompts["p2"].images
    most = 2

    def limited(images: list[ImageInput]) -> Any:
        if len(images) > most or any(image.hash == huge.hash for image in images):
            raise error
        return real(images)

    monkeypatch.setattr(core.target.adapter, "encode_images", limited)
    failed = failures(core, prompts | {"text": golden.prompt("Hello")}, golden)
    assert failed.keys() == {"p2"}
    assert failed["p2"] is not None
    assert failed["p2"].code == "out_of_memory"
    assert "picture" in failed["p2"].message
    monkeypatch.undo()
    assert failures(core, {"again": prompts["p2"]}, golden) == {}


@pytest.mark.parametrize(("seeds", "sizes"), [((0,), [1]), ((0, 1), [2, 1, 1])])
def test_pictures_are_tried_again_one_by_one_when_nothing_of_the_first_attempt_is_left(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, seeds: tuple[int, ...], sizes: list[int]
) -> None:
    """While an error is handled, its traceback keeps the tensors of the attempt. One alone fails at once."""
    core, tried = load(golden), []

    def failing(images: list[ImageInput]) -> Any:
        tried.append((len(images), sys.exc_info()[1]))
        raise MemoryError

    monkeypatch.setattr(core.target.adapter, "encode_images", failing)
    assert failures(core, {"a": golden.prompt("What?", seeds)}, golden).keys() == {"a"}
    assert tried == [(size, None) for size in sizes]


@pytest.mark.parametrize("most", [1, 3, 0])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_step_that_is_too_large_is_run_in_parts(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, error: Exception, most: int
) -> None:
    """``most``: sequences whose row fits, whichever they are; 0: nothing does."""
    core = load(golden)
    prompts = {f"p{seed}": golden.prompt(f"Tell me of {seed}", (seed,) * (seed % 2)) for seed in range(5)}
    real, sizes = core._runner.run, []

    def limited(spans: list[Span]) -> Any:
        if len(spans) > most:
            raise error
        outcome = real(spans)
        sizes.append(len(spans))
        return outcome

    monkeypatch.setattr(core._runner, "run", limited)
    failed = failures(core, prompts, golden)
    assert max(sizes, default=0) == most
    if most:
        assert failed == {}
    else:
        assert failed.keys() == prompts.keys()
        assert {error.code for error in failed.values() if error is not None} == {"out_of_memory"}
    monkeypatch.undo()
    assert failures(core, {f"again-{name}": prompt for name, prompt in prompts.items()}, golden) == {}


@pytest.mark.parametrize("stage", ["logits", "_compact"])
def test_memory_may_run_out_late_in_a_step(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """When keys and values of the step were written, and moved, already."""
    core = load(golden)
    owner: Any = core.target if stage == "logits" else core._runner
    real, raised = getattr(owner, stage), 0

    def failing(*args: Any) -> Any:
        nonlocal raised
        result = real(*args)
        raised += 1
        if raised % 3 == 1:
            raise MemoryError
        return result

    monkeypatch.setattr(owner, stage, failing)
    prompts = {f"p{seed}": golden.prompt("a b a b a b", (seed,)) for seed in range(3)}
    assert failures(core, prompts, golden).keys() < prompts.keys()
    assert raised > 3


def test_other_errors_of_a_step_still_stop_the_engine(
    golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = load(golden)

    def broken(spans: list[Span]) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(core._runner, "run", broken)
    core.add(request("a", golden.prompt("Hello"), max_tokens=8))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        core.step()
