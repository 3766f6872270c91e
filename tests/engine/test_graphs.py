"""What CUDA graphs replay, on a CPU: the same runs from the same fixed memory, done again instead.

Attention is Triton's, in its interpreter. This shows that all a step needs is copied to where a graph reads
it, that padding is read by nobody, and that the device reckons what the host plans; not that graphs are
captured (``specvlm selftest --device cuda`` says so, and compares answers).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import pytest
import torch

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.capturing import pages_of
from engine.config import TreeLimits
from engine.core import EngineCore
from engine.draft.eagle_drafter import EagleDrafter
from engine.graphs import Run
from engine.kv_cache import KVCache
from engine.messages import SpeculativeParams
from tests.conftest import BuildCheckpoint
from tests.engine.test_eagle_drafter import NUM_TOKENS, SMALL, ask, check, watched
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import draft_model_of, prompts_of, run_all, target_of
from tests.models import Family

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux; see extra dev)")

from engine.kernels.triton_attention import TritonAttention

FEW = TritonAttention(processors=1)


class Again:
    """A capture whose replays run the same once more, and spoil what they may: the results of all that was
    captured later. The ``refused``-th capture is refused.
    """

    def __init__(self, refused: int | None = None) -> None:
        self.num_replays = 0
        self._refused, self._results = refused, list[Seq[torch.Tensor]]()

    def __call__(self, run: Run) -> tuple[Seq[torch.Tensor], Callable[[], None]]:
        own = len(self._results)
        if own == self._refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        run()
        results = [result.clone() for result in run()]
        self._results.append(results)

        def replay() -> None:
            self.num_replays += 1
            for fixed, found in zip(results, run(), strict=True):
                fixed.copy_(found)
            for later in self._results[own + 1 :]:
                for tensor in later:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        return results, replay


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And models of this file's own: the shared ones have neither these parts nor graphs."""
    monkeypatch.setattr("engine.graphs.ROWS", (1, 4, 24))
    monkeypatch.setattr("engine.draft.level_graphs.SEQUENCES", (1, 4))
    for shared in (target_of, draft_model_of):
        shared.cache_clear()
    yield
    for shared in (target_of, draft_model_of):
        shared.cache_clear()


def without_kernels(family: str, tiny: BuildCheckpoint) -> Golden:
    """A golden model whose target attends by Triton."""
    golden = load_golden(tiny(family))
    target, _ = target_of(golden.folder, False)
    target.attention = FEW
    return golden


def capture(core: EngineCore, page_size: int, limits: TreeLimits, again: Again) -> EagleDrafter:
    pages = pages_of(core.info.max_model_len, page_size)
    core.target.capture(core._runner._cache, 4, pages, again)
    drafter = core._speculator.drafter
    assert isinstance(drafter, EagleDrafter)
    drafter.capture(4, pages, core.target.position_axes, limits, again)
    return drafter


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
    golden = without_kernels(family, tiny)
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, vocabulary, page_size=page_size, cpu_kernels=False)
    again = Again()
    drafter = capture(core, page_size, SMALL, again)
    assert core.target.has_graphs
    assert drafter.graphs is not None
    again.num_replays, grown = 0, []
    grow = drafter.graphs.grow
    monkeypatch.setattr(drafter.graphs, "grow", lambda *how: grown.append(how) or grow(*how))
    asked = [SpeculativeParams(), SpeculativeParams(topk=2), SpeculativeParams(num_steps=2)]
    arrivals = [(2 * i, ask(str(i), prompts[i], speculative=how)) for i, how in enumerate(asked)]
    arrivals.append((0, ask("3", prompts[3], speculative=SpeculativeParams(enabled=False))))
    stories = run_all(core, arrivals)
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"{family}, prompt {i}")
    check(golden, notes, vocabulary)
    assert grown
    assert again.num_replays > NUM_TOKENS / 2 + SMALL.num_steps * len(grown), "rows, too"


@pytest.mark.parametrize("attention", [FEW, TritonAttention(processors=3)])
def test_what_was_there_before_leaves_no_trace(attention: TritonAttention, tiny: BuildCheckpoint) -> None:
    """A small row after a large one gives the very numbers that it gives without graphs; with contexts in one
    piece and in many.
    """
    golden = without_kernels("llava", tiny)
    target, _ = target_of(golden.folder, False)
    cache = KVCache(target.kv_shape, 40, 4, target.device, attention)

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


@pytest.mark.parametrize("refused", [0, 3, 7])
def test_what_no_graph_holds_runs_without(
    refused: int, tiny: BuildCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """The model at its first or a later size, or a level of the draft."""
    golden = without_kernels("llava", tiny)
    prompts = prompts_of(golden)[:1]
    core, notes = watched(golden, prompts, 40, page_size=4, cpu_kernels=False)
    with caplog.at_level(logging.WARNING):
        drafter = capture(core, 4, SMALL, Again(refused))
    assert " runs without CUDA graphs" in caplog.text
    assert core.target.has_graphs == (refused == 7)
    assert drafter.graphs is None
    stories = run_all(core, [(0, ask("0", prompts[0]))])
    golden.compare(stories["0"].token_ids, prompts[0], NUM_TOKENS, f"{refused}")
    check(golden, notes, 40)
