"""Pictures pruned for the draft by what a CLIP tower attended to; the reference is the tower's own attention,
computed eagerly.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from compressors.elastic import BranchConfig, ElasticConfig
from engine.config import CompressorName, VisualCompression
from engine.errors import ModelLoadError
from processing.prompt import ImageInput, Prompt
from tests.conftest import BuildCheckpoint
from tests.engine.watched_draft import Note, WatchedEagle
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import plain_core, run_all, target_of
from tests.golden.test_compressors import ask, check, core_with, dense_check, noting, prompts_of
from tests.golden.test_families import SMALL, TALL, WIDE

NAMES: tuple[CompressorName, ...] = ("prune_attention", "pool", "auto")


@pytest.fixture
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("llava"))


@torch.no_grad()
def attended(golden: Golden, image: ImageInput) -> torch.Tensor:
    """What the class token looks at in the last layer, ``[patches]``, the mean of all heads."""
    tower = copy.deepcopy(golden.model.model.vision_tower)
    tower.set_attn_implementation("eager")
    pixels = torch.from_numpy(image.tensors["pixel_values"])
    scores: torch.Tensor = tower(pixels, output_attentions=True).attentions[-1][0, :, 0, 1:].mean(0)
    return scores


def scores_of(golden: Golden, prompts: list[Prompt]) -> dict[bytes, torch.Tensor]:
    return {image.hash: attended(golden, image) for prompt in prompts for image in prompt.images}


def test_scores_are_the_attention_of_the_class_token(golden: Golden) -> None:
    images = [image for i in range(3) for image in golden.prompt("What?", [(i, SMALL[1])]).images]
    target, _ = target_of(golden.folder)
    for batch in (images, images[:1]):
        for image, encoded in zip(batch, target.encode_images(batch), strict=True):
            assert encoded.scores is not None
            assert encoded.scores.std() > 1e-4, "attention that is the same everywhere tests nothing"
            torch.testing.assert_close(encoded.scores, attended(golden, image), rtol=1e-4, atol=1e-6)


def test_the_draft_keeps_what_was_attended_to(golden: Golden) -> None:
    """In chunks, beside other branches, with pictures from the encoder's cache, on pages of others."""
    prompts = prompts_of(golden)
    for rows in (20, 300):
        notes: list[Note] = []
        how = {"max_num_batched_tokens": rows, "cpu_kernels": False}
        core = core_with(golden, prompts, kind=WatchedEagle, attributes=noting(notes), **how)
        accepted = 0
        for attempt in ("cold", "warm"):
            arrivals = [
                (p, ask(f"{p}/{name} {attempt}", prompts[p], name, salt=name))
                for p, name in itertools.product(range(3), NAMES)
            ]
            accepted += check(golden, prompts, run_all(core, arrivals), attempt)
        assert accepted > 10
        assert core.stats.draft_pictures["prune_attention-5"] >= 2
        dense_check(golden, prompts, notes, core, scores_of(golden, prompts))


def test_a_gate_may_choose_it(golden: Golden) -> None:
    prompts = prompts_of(golden)
    elastic = ElasticConfig("select", (BranchConfig("prune_attention", 4),))
    core = core_with(golden, prompts, elastic, {"prune_attention": 8})
    check(
        golden, prompts, run_all(core, [(i, ask(str(i), p, "auto")) for i, p in enumerate(prompts)]), "gate"
    )
    assert set(core.stats.draft_pictures) == {"prune_attention-8"}


@pytest.mark.parametrize("method", ["pool", "prune"])
def test_it_works_on_what_the_target_was_left(golden: Golden, method: str) -> None:
    how = VisualCompression(method=method, ratio=2)  # type: ignore[arg-type]
    prompts = [golden.prompt("Compare the two.", [TALL, WIDE])]
    core = core_with(golden, prompts, target_visual_compression=how)
    plain, asked = plain_core(golden, target_visual_compression=how), ask("0", prompts[0], "auto")
    (want,) = run_all(plain, [(0, asked)]).values()
    (got,) = run_all(core, [(0, ask("0", prompts[0], "prune_attention"))]).values()
    assert got.token_ids == want.token_ids
    assert core.stats.draft_pictures == {"prune_attention-5": 2}
    assert 0 < core.stats.draft_kept_visual_tokens < core.stats.draft_visual_tokens


def test_families_without_such_a_tower_refuse_it(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("idefics3"))
    prompts = prompts_of(golden)
    core = core_with(golden, prompts)
    assert "prune_attention" not in core.info.compressors
    (story,) = run_all(core, [(0, ask("0", prompts[0], "prune_attention"))]).values()
    assert story.end.error is not None
    with pytest.raises(ModelLoadError, match="the vision tower's attention scores"):
        core_with(golden, prompts, ElasticConfig("select", (BranchConfig("prune_attention", 4),)))
