"""Families that see pictures, each in a few dense runs: pictures of several sizes and counts, cut up in every
way, from the cache, under preemption and with drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engine.draft.eagle_drafter import EagleDrafter
from engine.plan import Span
from engine.runner import Outcome
from engine.target import TargetModel
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.golden import drafts
from tests.golden.drafts import Garbage, Oracle, Scattered, SteeredEagle
from tests.golden.reference import Golden, Sized, load_golden
from tests.golden.speculating import (
    MakeDraft,
    asking,
    core_of,
    eagle,
    given,
    num_accepted,
    plain_core,
    run_all,
    target_of,
)
from tests.models import Family

PICTURE_FAMILIES: tuple[Family, ...] = (
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "internvl",
    "mistral3",
    "gemma3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_siglip",
    "llava_full",
)
SQUARE: tuple[Family, ...] = ("gemma3", "llava_siglip")
"""To these every picture is the same square."""

NUM_TOKENS = 12
SMALL: Sized = (1, (24, 30))
WIDE: Sized = (2, (90, 31))
TALL: Sized = (3, (33, 70))


def prompts_of(golden: Golden) -> list[Prompt]:
    """Text only, one picture, two of different sizes, and a wide one alone."""
    return [
        golden.prompt("The quick brown fox jumps over the lazy dog. " * 2),
        golden.prompt("What is this?", [SMALL]),
        golden.prompt("Compare the two.", [TALL, WIDE]),
        golden.prompt("And here?", [WIDE]),
    ]


def answers_of(golden: Golden, prompts: list[Prompt]) -> dict[str, list[int]]:
    return {str(i): golden.expected(prompt, NUM_TOKENS).token_ids for i, prompt in enumerate(prompts)}


def check(
    golden: Golden, make: MakeDraft, prompts: list[Prompt], where: str, gap: int = 0, **settings: object
) -> int:
    """Run twice, so from the cache as well; the number of accepted drafts."""
    core = core_of(golden, make, **settings)
    accepted = 0
    for attempt in ("cold", "warm"):
        arrivals = [(i * gap, asking(str(i), p, max_tokens=NUM_TOKENS)) for i, p in enumerate(prompts)]
        stories = run_all(core, arrivals)
        for i, prompt in enumerate(prompts):
            golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"{where}, {attempt}, prompt {i}")
        accepted += num_accepted(stories)
    assert core.stats.prefix_cache_hits > 0
    assert golden.near_ties <= 2, "near-ties should be rare with these weights"
    return accepted


def no_draft(*_: object) -> None:
    return None


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_pictures_are_seen(family: Family, tiny: BuildCheckpoint) -> None:
    """Another picture, or the same one in another size or order, is another answer."""
    golden = load_golden(tiny(family))
    shown = [[SMALL], [(4, SMALL[1])], [TALL, WIDE], [WIDE, TALL], [TALL, TALL]]
    if family not in SQUARE:
        shown.append([(1, (80, 40))])
    told = [golden.expected(golden.prompt("What is this?", one), NUM_TOKENS).token_ids for one in shown]
    assert len({tuple(tokens) for tokens in told}) == len(told)
    assert all(len(set(tokens)) > NUM_TOKENS // 3 for tokens in told)


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_alone_and_together_in_any_cut(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    least = target_of(golden.folder)[0].adapter.longest_block + 4
    for page_size, rows, gap, cpu_kernels in (
        (1, 23, 0, True),
        (5, 512, 3, False),
        (16, 9, 1, False),
        (7, 80, 0, True),
    ):
        chunk = max(rows, least)
        where = f"{family}: pages of {page_size}, chunks of {chunk}"
        how = {
            "page_size": page_size,
            "max_num_batched_tokens": chunk,
            "cpu_kernels": cpu_kernels,
        }
        check(golden, no_draft, prompts, where, gap, **how)
    for i, prompt in enumerate(prompts):
        check(golden, no_draft, [prompt], f"{family}: {i} alone", page_size=4)


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_a_prefix_hit_ends_inside_a_picture(family: Family, tiny: BuildCheckpoint) -> None:
    """Prompts that part between two pictures, so that the shared pages end anywhere around the border."""
    golden = load_golden(tiny(family))
    pair = [golden.prompt("Compare.", [WIDE, other]) for other in (SMALL, (5, SMALL[1]))]
    assert pair[0].token_ids == pair[1].token_ids
    for page_size in (3, 7, 16):
        core = plain_core(golden, page_size=page_size)
        for i, prompt in enumerate(pair):
            story = run_all(core, [(0, asking("a", prompt, max_tokens=NUM_TOKENS))])["a"]
            golden.compare(story.token_ids, prompt, NUM_TOKENS, f"{family}: {i}, pages of {page_size}")
        hits, shared = core.stats.prefix_cache_hits, pair[0].images[0].end
        assert hits <= pair[0].images[1].end
        if core.target.adapter.longest_block:
            spans = [span for image in pair[1].images for span in image.spans]
            assert not any(start < hits < start + length for start, length in spans), "a picture was cut"
        else:
            assert hits > shared - page_size, "what both begin with was computed twice"


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_preemption_changes_nothing(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    check_with_few_pages(golden, no_draft, 3, caching=True)
    check_with_few_pages(golden, given(Garbage(drafts.mixed, 500)), 3, caching=False)


@pytest.mark.parametrize("caching", [True, False])
def test_preemption_changes_nothing_with_an_eagle_draft(caching: bool, tiny: BuildCheckpoint) -> None:
    """Which has KV of its own for each page, to make again."""
    golden = load_golden(tiny("qwen2_vl"))
    answers = {str(i): golden.expected(p, 30).token_ids for i, p in enumerate(alike(golden))}
    for make in (eagle(golden, EagleDrafter), eagle(golden, SteeredEagle, 40, answers=answers)):
        check_with_few_pages(golden, make, 2, caching=caching)


def alike(golden: Golden) -> list[Prompt]:
    return [golden.prompt(f"Question {i}?", [(i, SMALL[1])]) for i in range(4)]


def check_with_few_pages(golden: Golden, make: MakeDraft, num_prompts: int, *, caching: bool) -> None:
    """Pages for so many prompts, but not for their answers."""
    prompts = alike(golden)
    pages = max(-(-len(p.token_ids) // 4) for p in prompts)
    page_bytes = target_of(golden.folder)[0].kv_shape.bytes_per_token * 4
    how = {"kv_cache_memory": (num_prompts * pages + 5) * page_bytes, "max_model_len": pages * 4 + 30}
    core = core_of(golden, make, enable_prefix_caching=caching, **how)
    arrivals = [(0, asking(str(i), p, max_tokens=30)) for i, p in enumerate(prompts)]
    for name, story in run_all(core, arrivals).items():
        golden.compare(story.token_ids, prompts[int(name)], 30, f"few pages, {name}")
    assert core.stats.num_preemptions > 0, "the test must preempt"


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_no_draft_changes_a_token(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    answers = answers_of(golden, prompts)
    for name, make, page_size, chunk, cpu_kernels in (
        ("garbage", given(Garbage(drafts.mixed, 500)), 5, 80, True),
        ("garbage of 63 nodes", given(Garbage(drafts.full, 500)), 16, 300, False),
        ("oracle", given(Oracle(answers)), 1, 300, True),
        ("scattered", given(Scattered(drafts.full, 500, answers)), 7, 80, False),
        ("eagle", eagle(golden, EagleDrafter), 5, 40, True),
        ("steered eagle", eagle(golden, SteeredEagle, 40, answers=answers), 16, 80, True),
    ):
        how = {"page_size": page_size, "max_num_batched_tokens": chunk, "cpu_kernels": cpu_kernels}
        accepted = check(golden, make, prompts, f"{family}, {name}", **how)
        if name in ("oracle", "scattered", "steered eagle"):
            assert accepted >= 15, f"{name}: too little was accepted to test anything"


class Watcher(drafts.Adversary):
    """Keeps the features and embeddings that a draft would be given for a prompt."""

    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self.features: list[torch.Tensor] = []

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        self.features.append(outcome.features)

    def ready(self, *_: object) -> bool:
        return False


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_a_draft_is_given_the_hidden_states_after_the_final_norm(
    family: Family, tiny: BuildCheckpoint
) -> None:
    golden = load_golden(tiny(family))
    prompt = prompts_of(golden)[2]
    watcher = Watcher(target_of(golden.folder)[0])
    core = core_of(golden, given(watcher), max_num_batched_tokens=50)
    run_all(core, [(0, asking("a", prompt, max_tokens=1))])
    found = torch.cat(watcher.features)
    with torch.no_grad():
        output = golden.model(**golden.inputs_of(prompt), output_hidden_states=True)
    torch.testing.assert_close(found, output.hidden_states[-1][0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(watcher.target.logits(found), output.logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", PICTURE_FAMILIES)
def test_tensors_that_are_no_picture_of_the_family_are_refused(family: Family, tiny: BuildCheckpoint) -> None:
    """Each of them would otherwise break the step that it is encoded in, for everybody."""
    golden = load_golden(tiny(family))
    target, _ = target_of(golden.folder)
    (image,) = golden.prompt("What?", [WIDE]).images

    def admit(**changes: Any) -> None:
        changed = msgspec.structs.replace(image, **changes)
        target.adapter.check_image(changed)
        target.encode_images([changed])

    admit()
    for name, array in image.tensors.items():
        others = {key: value for key, value in image.tensors.items() if key != name}
        wrong = (array.astype(np.float64), array[None], array[:0], array[..., :-1])
        for tensors in (others, *(others | {name: one} for one in wrong)):
            with pytest.raises(ValueError, match=r"must|take|tokens|tiles"):
                admit(tensors=tensors)
    with pytest.raises(ValueError, match=r"tokens"):
        admit(spans=image.spans[:-1] or [(image.start, image.num_tokens - 1)])
