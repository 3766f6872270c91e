"""Lossy compression for the target: the text is that of plain decoding of the shorter prompt, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from compressors.base import Picture
from compressors.diverse import DiversePrune
from compressors.pool import Pool
from engine.config import NO_COMPRESSION, SpeculativeConfig, VisualCompression
from engine.errors import ModelLoadError
from engine.messages import GenerateRequest, SpeculativeParams
from engine.visual_compression import CompressedImage, compressed
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden.drafts import SteeredEagle
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import asking, core_of, eagle, num_accepted, plain_core, run_all, target_of
from tests.golden.test_compressors import LIMITS, SELECT
from tests.golden.test_families import SMALL, TALL, WIDE
from tests.models import Family

NUM_TOKENS = 10
SUPPORTED: tuple[Family, ...] = (
    "llava",
    "llava_siglip",
    "llava_full",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "internvl",
)
WAYS = (
    VisualCompression(method="pool", ratio=4),
    VisualCompression(method="prune", ratio=2.5),
    VisualCompression(method="pool", ratio=1000),
)


def prompts_of(golden: Golden) -> list[Prompt]:
    return [golden.prompt("What is this?", [WIDE]), golden.prompt("Compare the two.", [TALL, SMALL])]


@torch.inference_mode()
def shorter(golden: Golden, prompt: Prompt, how: VisualCompression) -> Prompt:
    """The prompt that the target is to see; its reference is given embeddings that are put together here."""
    target, _ = target_of(golden.folder)
    made = compressed(prompt, how, target.adapter)
    embeddings = golden.model.get_input_embeddings()(torch.tensor(made.token_ids)).clone()
    compressor = (Pool if how.method == "pool" else DiversePrune)(how.ratio)
    for image, whole in zip(made.images, prompt.images, strict=True):
        (encoded,) = target.adapter.encode_images([whole])
        grids = target.adapter.grids(whole)
        (found,) = compressor(encoded.values, [Picture(grids, b"")])
        places = np.concatenate([np.arange(start, start + length) for start, length in image.spans])
        embeddings[places] = found.values
    golden.give(made, embeddings)
    return made


def ask(name: str, prompt: Prompt, how: VisualCompression | None, **more: object) -> GenerateRequest:
    told = SpeculativeParams(compressor=more.pop("compressor", "auto"))  # type: ignore[arg-type]
    made = asking(name, prompt, max_tokens=NUM_TOKENS, speculative=told, **more)  # type: ignore[arg-type]
    return replace(made, visual_compression=how)


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_text_is_that_of_the_shorter_prompt(family: Family, tiny: BuildCheckpoint) -> None:
    """Cut into chunks, from the cache and beside the whole pictures; with a draft that compresses again."""
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    ways = (*WAYS, None)
    want = {
        f"{p}/{w}": prompt if how is None else shorter(golden, prompt, how)
        for p, prompt in enumerate(prompts)
        for w, how in enumerate(ways)
    }
    answers = {name: golden.expected(one, NUM_TOKENS).token_ids for name, one in want.items()}
    assert len({tuple(tokens) for tokens in answers.values()}) > 4, "compression must change answers here"
    settings = {"max_num_batched_tokens": 50, "page_size": 5, "target_visual_compression": NO_COMPRESSION}
    steered = eagle(golden, SteeredEagle, 40, SELECT, answers=answers)
    for core in (
        plain_core(golden, **settings),
        core_of(golden, steered, speculative=SpeculativeConfig(**LIMITS), **settings),
    ):
        for attempt in ("cold", "warm"):
            arrivals = [
                (i, ask(f"{p}/{w}", prompts[p], ways[w], compressor=("auto", "none", "auto", "none")[w]))
                for i, (p, w) in enumerate((p, w) for p in range(2) for w in range(4))
            ]
            stories = run_all(core, arrivals)
            for name, story in stories.items():
                where = f"{family}, {attempt}, {name}"
                golden.compare(story.token_ids, want[name], NUM_TOKENS, where)
                spared = len(prompts[int(name[0])].token_ids) - len(want[name].token_ids)
                assert story.end.num_spared_tokens == spared
                assert (spared > 0) == (ways[int(name[2])] is not None)
    assert num_accepted(stories) > 10
    assert core.stats.prefix_cache_hits > 0


def test_the_engines_setting_holds_unless_a_request_says_otherwise(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    (prompt, _) = prompts_of(golden)
    short = shorter(golden, prompt, WAYS[0])
    core = plain_core(golden, target_visual_compression=WAYS[0])
    for how, want in ((None, short), (NO_COMPRESSION, prompt)):
        story = run_all(core, [(0, ask("0", prompt, how))])["0"]
        golden.compare(story.token_ids, want, NUM_TOKENS, str(how))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "mistral3", "gemma3", "llama"])
def test_families_whose_tokens_stand_for_places_refuse(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    for how in (WAYS[0], NO_COMPRESSION):
        with pytest.raises(ModelLoadError, match="target-visual-compression"):
            plain_core(golden, target_visual_compression=how)


def test_nobody_gets_it_who_was_not_allowed(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    (prompt, _) = prompts_of(golden)
    core = plain_core(golden)
    core.add(ask("0", prompt, WAYS[0]))
    (output,) = core.step().outputs
    assert output.error is not None
    assert "visual_compression was not allowed" in output.error.message
    story = run_all(core, [(0, ask("0", prompt, NO_COMPRESSION))])["0"]
    golden.compare(story.token_ids, prompt, NUM_TOKENS, "none")


def test_a_ratio_that_means_nothing_is_refused(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    core = plain_core(golden, target_visual_compression=NO_COMPRESSION)
    for ratio in (0.5, float("nan")):
        core.add(ask("0", prompts_of(golden)[0], VisualCompression(method="pool", ratio=ratio)))
        (output,) = core.step().outputs
        assert output.error is not None
        assert output.error.code == "invalid_request"


def test_methods_and_ratios_have_caches_of_their_own(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    (prompt, _) = prompts_of(golden)
    hashes = {prompt.images[0].hash}
    for how in WAYS:
        (image,) = compressed(prompt, how, target_of(golden.folder)[0].adapter).images
        assert isinstance(image, CompressedImage)
        assert image.num_tokens < image.num_encoded == prompt.images[0].num_tokens
        hashes.add(image.hash)
    assert len(hashes) == 1 + len(WAYS)


def test_what_is_left_must_fit_the_context_not_what_was_there(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    (prompt, _) = prompts_of(golden)
    short = shorter(golden, prompt, WAYS[0])
    room = len(short.token_ids) + NUM_TOKENS
    assert room < len(prompt.token_ids)
    core = plain_core(golden, target_visual_compression=WAYS[0], max_model_len=room)
    story = run_all(core, [(0, ask("0", prompt, None))])["0"]
    golden.compare(story.token_ids, short, NUM_TOKENS, "a short context")
    core.add(ask("0", prompt, NO_COMPRESSION))
    (output,) = core.step().outputs
    assert output.error is not None
    assert output.error.code == "context_length_exceeded"
