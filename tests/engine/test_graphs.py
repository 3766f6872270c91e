"""What CUDA graphs replay, on a CPU: the same runs from the same fixed memory, done again instead.

Attention is Triton's, in its interpreter. This shows that all a step needs is copied to where a graph reads
it, that padding is read by nobody, and that the device reckons what the host plans; not that graphs are
captured (``specvlm selftest --device cuda`` does).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.capturing import pages_of
from engine.config import EngineConfig, SpeculativeConfig
from engine.core import EngineCore
from engine.eagle_drafter import EagleDrafter
from engine.graphs import Run
from engine.kv_cache import KVCache
from engine.messages import SpeculativeParams
from engine.target import TargetModel
from tests.conftest import BuildCheckpoint
from tests.engine.test_eagle_drafter import NUM_TOKENS, SMALL, ask, check, watched
from tests.golden.reference import load_golden
from tests.golden.speculating import prompts_of, run_all, target_of
from tests.models import Family

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux; see extra dev)")

from engine.kernels.triton_attention import TritonAttention

FEW = TritonAttention(processors=1)


class Again:
    """A capture whose replays run the same once more."""

    def __init__(self) -> None:
        self.num_replays = 0

    def __call__(self, run: Run) -> tuple[Seq[torch.Tensor], Callable[[], None]]:
        run()
        results = [result.clone() for result in run()]

        def replay() -> None:
            self.num_replays += 1
            for fixed, found in zip(results, run(), strict=True):
                fixed.copy_(found)

        return results, replay


@pytest.fixture
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.graphs.ROWS", (1, 4, 24))
    monkeypatch.setattr("engine.level_graphs.SEQUENCES", (1, 4))


def without_kernels(family: str, tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A golden model whose shared target attends by Triton for the length of the test."""
    golden = load_golden(tiny(family))
    target, _ = target_of(golden.folder, False)
    monkeypatch.setattr(target, "attention", FEW)
    monkeypatch.setattr(target, "_graphs", None)
    return golden


def capture(core: EngineCore, page_size: int, limits: SpeculativeConfig) -> tuple[Again, Again]:
    """The target's and the draft's."""
    own, drafts = Again(), Again()
    pages = pages_of(core.info.max_model_len, page_size)
    core.target.capture(core._runner._cache, 4, pages, own)
    drafter = core._speculator.drafter
    assert isinstance(drafter, EagleDrafter)
    drafter.capture(4, pages, core.target.position_axes, limits, drafts)
    return own, drafts


@pytest.mark.usefixtures("few_sizes")
@pytest.mark.parametrize(
    ("family", "vocabulary", "page_size"),
    [("qwen2_vl", None, 5), ("mistral_sliding", 40, 3)],
)
def test_answers_and_drafts_are_those_of_dense_models(
    family: Family,
    vocabulary: int | None,
    page_size: int,
    tiny: BuildCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    golden = without_kernels(family, tiny, monkeypatch)
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, vocabulary, page_size=page_size, cpu_kernels=False)
    own, drafts = capture(core, page_size, SMALL)
    own.num_replays = drafts.num_replays = 0
    asked = [SpeculativeParams(), SpeculativeParams(topk=2), SpeculativeParams(num_steps=2)]
    arrivals = [(2 * i, ask(str(i), prompts[i], speculative=how)) for i, how in enumerate(asked)]
    arrivals.append((0, ask("3", prompts[3], speculative=SpeculativeParams(enabled=False))))
    stories = run_all(core, arrivals)
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"{family}, prompt {i}")
    check(golden, notes, vocabulary)
    assert own.num_replays > NUM_TOKENS / 2
    assert drafts.num_replays > len(notes), "levels and what the draft had to see"


@pytest.mark.usefixtures("few_sizes")
def test_what_was_there_before_leaves_no_trace(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small row after a large one gives the very numbers that it gives without graphs."""
    golden = without_kernels("llava", tiny, monkeypatch)
    target, _ = target_of(golden.folder, False)
    cache = KVCache(target.kv_shape, 40, 4, target.device, FEW)

    def hidden(rows: int, first: int) -> torch.Tensor:
        parts = []
        for page, count in ((3, rows), (20, 1)):
            ids = torch.arange(count).numpy() + first
            parts.append(Part(ids, ids, list(range(page, page + 12)), first))
        return target.forward(prepare(build_batch(parts, 4, target.device), cache)).hidden

    def all_of_them() -> list[torch.Tensor]:
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(0.5)
        found = [hidden(rows, first) for rows, first in ((20, 9), (2, 5), (6, 30), (1, 2))]
        return [*found, *(tensor[: cache.num_slots].clone() for tensor in (*cache.keys, *cache.values))]

    wanted, again = all_of_them(), Again()
    target.capture(cache, 4, 12, again)
    again.num_replays = 0
    found = all_of_them()
    assert again.num_replays == 4
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_model_that_no_graph_holds_runs_without(
    tiny: BuildCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(model=str(tiny("llama")), device="cpu", cpu_kernels=False)
    target = TargetModel.load(config)
    target.attention = FEW
    cache = KVCache(target.kv_shape, 8, 4, target.device, FEW)

    def refuse(run: Run) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        target.capture(cache, 4, 8, refuse)
    assert "no CUDA graphs of the model" in caplog.text
    batch = build_batch([Part(*(torch.arange(3).numpy(),) * 2, [0], 0)], 4, target.device)
    assert target.forward(prepare(batch, cache)).hidden.isfinite().all()
