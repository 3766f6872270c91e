"""Whatever the draft sees of pictures, the text is that of plain decoding, and what it holds is what it
should.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch

from compressors.base import Picture
from compressors.elastic import BranchConfig, ElasticConfig, training_free
from engine.config import CompressorName, SpeculativeConfig
from engine.core import EngineCore
from engine.draft.branches import Branches
from engine.errors import ModelLoadError
from engine.messages import EngineStats, GenerateRequest, SpeculativeParams
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.engine.dense_draft import DenseDraft, Way
from tests.engine.test_eagle_drafter import Answers
from tests.engine.watched_draft import Note, WatchedEagle
from tests.golden.drafts import SteeredEagle
from tests.golden.reference import EPSILON, Golden, load_golden
from tests.golden.speculating import (
    Story,
    asking,
    core_of,
    draft_folder,
    draft_model_of,
    eagle,
    num_accepted,
    plain_core,
    run_all,
    target_of,
)
from tests.golden.test_families import PICTURE_FAMILIES, SMALL, TALL, WIDE
from tests.models import Family

NUM_TOKENS = 10
LIMITS = {"num_steps": 4, "topk": 4, "num_draft_tokens": 24}
SELECT = ElasticConfig(
    "select",
    (
        BranchConfig("pool", 3),
        BranchConfig("conv", 4),
        BranchConfig("resampler", 9),
        BranchConfig("text_only"),
        BranchConfig("none"),
    ),
)
WEIGHT = ElasticConfig("weight", (BranchConfig("prune", 3), BranchConfig("pool", 3), BranchConfig("conv", 3)))
CONCAT = ElasticConfig("concat", (BranchConfig("pool", 20), BranchConfig("conv", 3)))
NAMES: tuple[CompressorName, ...] = (
    *("auto", "none", "prune", "prune_uniform", "prune_norm"),
    *("pool", "conv", "resampler", "text_only"),
)


def prompts_of(golden: Golden) -> list[Prompt]:
    """One picture; two of which one is the first's again; text alone."""
    return [
        golden.prompt("What is this?", [WIDE]),
        golden.prompt("Compare the two.", [TALL, WIDE]),
        golden.prompt("No picture here."),
    ]


def core_with(
    golden: Golden,
    prompts: Seq[Prompt],
    elastic: ElasticConfig | None = SELECT,
    ratios: dict[str, float] | None = None,
    kind: type[SteeredEagle] = SteeredEagle,
    attributes: dict[str, Any] | None = None,
    **settings: Any,
) -> EngineCore:
    """A draft of random weights some of whose candidates are made right."""
    answers = Answers({str(i): golden.expected(p, NUM_TOKENS).token_ids for i, p in enumerate(prompts)})
    asked = SpeculativeConfig(**LIMITS, compressor_ratios=ratios or {})  # type: ignore[arg-type]
    make = eagle(golden, kind, 40, elastic, answers=answers, **(attributes or {}))
    return core_of(golden, make, speculative=asked, **settings)


def ask(name: str, prompt: Prompt, compressor: CompressorName, **how: Any) -> GenerateRequest:
    asked = {"details": how.pop("details", []), "trace": how.pop("trace", False)}
    told = SpeculativeParams(compressor=compressor, **asked)
    return asking(name, prompt, **({"max_tokens": NUM_TOKENS} | how), speculative=told)


def check(golden: Golden, prompts: Seq[Prompt], stories: dict[str, Story], where: str) -> int:
    """The number of accepted drafts. Requests are named by their prompt, then a slash."""
    for name, story in stories.items():
        prompt = prompts[int(name.split("/")[0])]
        golden.compare(story.token_ids, prompt, NUM_TOKENS, f"{where}, {name}")
    assert golden.near_ties <= 2
    return num_accepted(stories)


@pytest.mark.parametrize("family", ["llava", *PICTURE_FAMILIES])
def test_no_branch_changes_a_token(family: Family, tiny: BuildCheckpoint) -> None:
    """All branches in one batch, prompts in chunks; then all again on pages that others have left."""
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    number = ["llava", *PICTURE_FAMILIES].index(family)
    page_size, rows = ((4, 60), (16, 300), (1, 90), (7, 40))[number % 4]
    core = core_with(golden, prompts, page_size=page_size, max_num_batched_tokens=rows)
    accepted = 0
    for attempt in ("cold", "warm"):
        arrivals = [
            (2 * i, ask(f"{p}/{name} {attempt}", prompts[p], name, salt=name if attempt == "cold" else ""))
            for i, (p, name) in enumerate(itertools.product(range(3), NAMES))
        ]
        stories = run_all(core, arrivals)
        accepted += check(golden, prompts, stories, f"{family}, {attempt}")
        if attempt == "cold":
            for name in ("none", "prune-5", "pool-3", "conv-4", "resampler-9", "text_only"):
                assert core.stats.draft_pictures[name] >= 3
    assert accepted > 40, "too little was accepted to test anything"
    assert core.stats.prefix_cache_hits > 0


@pytest.mark.parametrize(
    ("elastic", "ratios"),
    [
        (None, {"prune": 2, "pool": 20}),
        (None, {"prune": 10, "pool": 1}),
        (WEIGHT, {}),
        (CONCAT, {}),
        (SELECT, {"pool": 7.5, "conv": 2, "resampler": 3}),
    ],
    ids=str,
)
def test_no_mode_and_no_ratio_changes_a_token(
    elastic: ElasticConfig | None, ratios: dict[str, float], tiny: BuildCheckpoint
) -> None:
    golden = load_golden(tiny("llava_next"))
    prompts = prompts_of(golden)
    names = [n for n in NAMES if elastic is not None or n not in ("conv", "resampler")]
    names = [n for n in names if elastic is not CONCAT or n != "resampler"]
    names = [n for n in names if elastic is not WEIGHT or n != "resampler"]
    core = core_with(golden, prompts, elastic, ratios, max_num_batched_tokens=100)
    for attempt in ("cold", "warm"):
        arrivals = [
            (i, ask(f"{i % 3}/{name}{attempt}", prompts[i % 3], name)) for i, name in enumerate(names)
        ]
        check(golden, prompts, run_all(core, arrivals), attempt)


def test_seeded_text_is_that_of_plain_decoding(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("qwen2_vl"))
    prompts = prompts_of(golden)
    how = [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3, "top_k": 30}]

    def asked(name: CompressorName) -> list[tuple[int, GenerateRequest]]:
        return [
            (i, ask(f"{i % 3}/{i}", prompts[i % 3], name, seed=100 + i, logprobs=1, **how[i // 3]))
            for i in range(9)
        ]

    want = run_all(plain_core(golden), asked("none"))
    core, flips = core_with(golden, prompts), 0
    for name in NAMES:
        got = run_all(core, asked(name))
        flips += sum(got[key].token_ids != want[key].token_ids for key in want)
        for key in want:
            pairs = zip(got[key].logprobs, want[key].logprobs, strict=False)
            first = next(pairs)
            assert abs(first[0].logprob - first[1].logprob) < EPSILON * 10
    assert flips <= 1, "a draw at the border of two tokens may fall the other way, but hardly ever"


def test_two_questions_share_a_compressed_picture_and_its_pages(tiny: BuildCheckpoint) -> None:
    """A hit of the target ends within the picture or behind it; the draft goes on with all that it had."""
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt(text, [SMALL]) for text in ("What?", "Where is it, and why?", "What colour?")]
    for name in NAMES:
        notes: list[Note] = []
        core = core_with(golden, prompts, kind=WatchedEagle, attributes=noting(notes))
        for i, prompt in enumerate(prompts):
            stories = run_all(core, [(0, ask(str(i), prompt, name))])
            check(golden, prompts, stories, name)
            if i:
                cached = stories[str(i)].end.num_cached_tokens
                assert prompt.images[0].start < cached
        assert sum(core.stats.draft_pictures.values()) == 1, "a picture was compressed again"
        dense_check(golden, prompts, notes, core)


def test_preemption_rebuilds_compressed_pictures(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    asked: list[CompressorName] = ["auto", "pool", "text_only", "auto", "conv"]
    prompts = [golden.prompt(f"Story {i}", [(i, SMALL[1])]) for i in range(5)]
    longest = max(len(p.token_ids) for p in prompts) + 40
    page_bytes = target_of(golden.folder)[0].kv_shape.bytes_per_token * 4
    how = {"kv_cache_memory": (-(-longest // 4) + 5) * page_bytes, "max_model_len": longest}
    answers = Answers({str(i): golden.expected(p, 40).token_ids for i, p in enumerate(prompts)})
    for caching in (True, False):
        make = eagle(golden, SteeredEagle, 40, SELECT, answers=answers)
        core = core_of(golden, make, max_num_seqs=5, enable_prefix_caching=caching, **how)
        arrivals = [(0, ask(str(i), p, asked[i], max_tokens=40)) for i, p in enumerate(prompts)]
        for name, story in run_all(core, arrivals).items():
            golden.compare(story.token_ids, prompts[int(name)], 40, f"few pages, {name}")
        assert core.stats.num_preemptions > 0, "the test must preempt"


def noting(notes: list[Note]) -> dict[str, Any]:
    return {"notes": notes, "late": 0, "_starts": weakref.WeakKeyDictionary()}


def dense_check(
    golden: Golden,
    prompts: list[Prompt],
    notes: list[Note],
    core: EngineCore,
    scores: dict[bytes, torch.Tensor] | None = None,
) -> None:
    """The draft's KV is that of one dense run over the text and the pictures, each compressed whole.

    ``scores``: of pictures by their hashes, where they are to be pruned by what the tower attended to.
    """
    dense = DenseDraft(golden, draft_folder(golden.folder, 40, SELECT))
    trained, scores = draft_model_of(golden.folder, 40, SELECT).compressor, scores or {}
    branches = Branches(SpeculativeConfig(), trained, knows_attention=bool(scores))
    assert notes
    for note in notes:
        ways: list[Way] = []
        for image, tag in zip(note.images, note.tags, strict=True):
            assert tag is not None, "the draft goes without a picture"
            rows = np.concatenate([np.arange(start, start + length) for start, length in image.spans])
            picture = Picture(core.target.adapter.grids(image), image.hash, scores.get(image.hash))
            ways.append((torch.from_numpy(rows), branches.branch(tag), picture))
        given = golden.inputs_of(prompts[int(note.request_id.split("/")[0])])
        keys, values = dense.compressed_kv(note.token_ids, note.images, given, ways)
        assert len(keys) == len(note.keys), f"{note.request_id}: another number of slots"
        torch.testing.assert_close(note.keys, keys, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(note.values, values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llava_next", "idefics3", "qwen2_5_vl"])
def test_the_draft_holds_what_a_dense_one_holds(family: Family, tiny: BuildCheckpoint) -> None:
    """Right inputs, places and positions, with text between tiles and three axes: wrong ones cost
    acceptance.
    """
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    for rows in (45, 300):
        notes: list[Note] = []
        how = {"max_num_batched_tokens": rows, "cpu_kernels": False}
        core = core_with(golden, prompts, kind=WatchedEagle, attributes=noting(notes), **how)
        arrivals = [
            (i, ask(f"{p}/{name}", prompts[p], name, salt=name))
            for i, (name, p) in enumerate(itertools.product(NAMES, range(3)))
        ]
        check(golden, prompts, run_all(core, arrivals), family)
        dense_check(golden, prompts, notes, core)


def test_detail_is_the_budget_of_the_draft(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava_next"))
    prompts = prompts_of(golden)[1:2]
    for elastic, low in ((SELECT, "resampler-9"), (None, "pool-5")):
        core = core_with(golden, prompts, elastic)
        for name, details, want in (
            ("auto", ["low", "high"], [low, "none"]),
            ("auto", ["high", "high"], ["none", "none"]),
            ("prune", ["low", "high"], ["prune-5", "prune-5"]),
        ):
            one = ask("0", prompts[0], name, details=details, salt=f"{name} {details}")  # type: ignore[arg-type]
            told = run_all(core, [(0, one)])["0"].end.speculation
            assert told is not None
            assert [shown.compressor for shown in told.pictures] == want
            assert told.visual_tokens == sum(image.num_tokens for image in prompts[0].images)


def test_fewer_visual_tokens_are_fewer_slots_and_the_counters_say_so(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt("What is this?", [SMALL])]
    visual, text = prompts[0].images[0].num_tokens, 0
    for name, kept in (("none", visual), ("text_only", 0), ("pool", -(-visual // 3))):
        notes: list[Note] = []
        core = core_with(golden, prompts, kind=WatchedEagle, attributes=noting(notes))
        story = run_all(core, [(0, ask("0", prompts[0], name))])["0"]  # type: ignore[arg-type]
        assert story.end.speculation is not None
        (shown,) = story.end.speculation.pictures
        assert abs(shown.visual_tokens - kept) <= 1
        text = len(notes[0].token_ids) - visual
        assert len(notes[0].keys) == text + shown.visual_tokens
        stats: EngineStats = core.stats
        slot_bytes = draft_model_of(golden.folder, 40, SELECT).kv_shape.bytes_per_token
        assert stats.draft_visual_tokens == visual
        assert stats.draft_kept_visual_tokens == shown.visual_tokens
        assert stats.draft_kv_bytes_saved == (visual - shown.visual_tokens) * slot_bytes
        assert stats.draft_pictures == {shown.compressor: 1}


def test_a_trace_tells_which_visual_tokens_were_kept(tiny: BuildCheckpoint) -> None:
    """Of a picture that was compressed for it, and of one whose compressed pages it found."""
    golden = load_golden(tiny("llava_next"))
    prompts = [golden.prompt(text, [WIDE]) for text in ("What is this?", "What colour?", "Where?")]
    (image,) = prompts[0].images
    core = core_with(golden, prompts)
    grids = core.target.adapter.grids(image)
    assert len(grids) > 1
    ways = {"pool": ("pool", 3), "prune": ("prune", 5), "text_only": ("text_only", 1), "none": None}
    for name, way in ways.items():
        for i, prompt in enumerate(prompts):
            one = ask(str(i), prompt, name, trace=i < 2, salt=name)  # type: ignore[arg-type]
            told = run_all(core, [(0, one)])[str(i)].end.speculation
            assert told is not None
            (shown,) = told.pictures
            if i == 2:
                assert (shown.grids, shown.sources) == ([], None), "nobody asked"
            elif way is None:
                assert (shown.grids, shown.sources) == (list(grids), None)
            else:
                (kept,) = training_free(*way)(torch.zeros(image.num_tokens, 1), [Picture(grids, image.hash)])
                assert (shown.grids, shown.sources) == (list(grids), kept.sources.tolist())
                assert shown.visual_tokens == len(shown.sources)
    assert core.stats.prefix_cache_hits > 0
    assert sum(core.stats.draft_pictures.values()) == len(ways), "a picture was compressed again"


def test_what_the_draft_cannot_do_is_refused(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)[:1]
    core = core_with(golden, prompts, None)
    prunings = ("prune", "prune_uniform", "prune_norm", "prune_attention")
    assert core.info.compressors == ("auto", "none", *prunings, "pool", "text_only")
    for one in (ask("0", prompts[0], "conv"), ask("0", prompts[0], "pool", details=["low", "low"])):
        core.add(one)
        (output,) = core.step().outputs
        assert output.error is not None
        assert output.error.code == "invalid_request"
    with pytest.raises(ModelLoadError, match="conv"):
        core_with(golden, prompts, None, {"conv": 3})
    with pytest.raises(ModelLoadError, match="at most 5"):
        core_with(golden, prompts, SELECT, {"conv": 6})
