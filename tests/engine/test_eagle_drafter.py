"""The EAGLE drafter against a dense draft without pages, trees or batches: what it holds and proposes."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import SpeculativeConfig
from engine.core import EngineCore
from engine.draft.choose import choose_drafter
from engine.messages import GenerateRequest, SpeculativeParams
from processing.prompt import Prompt
from tests.conftest import BuildCheckpoint
from tests.engine.dense_draft import DenseDraft
from tests.engine.watched_draft import Note, WatchedEagle
from tests.golden.reference import Golden, load_golden
from tests.golden.speculating import (
    Story,
    asking,
    core_of,
    draft_folder,
    eagle,
    prompts_of,
    run_all,
    target_of,
)
from tests.models import Family

NUM_TOKENS = 14
SMALL = SpeculativeConfig(num_steps=4, topk=3, num_draft_tokens=30)


class Answers(dict[str, list[int]]):
    """Right answers by request id; the id's part behind "/" tells apart requests for the same answer."""

    def __missing__(self, request_id: str) -> list[int]:
        return self[request_id.split("/")[0]]


def watched(
    golden: Golden,
    prompts: list[Prompt],
    vocabulary: int | None = 40,
    *,
    late: int = 0,
    num_tokens: int = NUM_TOKENS,
    **settings: Any,
) -> tuple[EngineCore, list[Note]]:
    """A core whose drafter writes its notes into the list; half of its drafts are accepted."""
    notes: list[Note] = []
    answers = Answers(
        {str(i): golden.expected(prompt, num_tokens).token_ids for i, prompt in enumerate(prompts)}
    )
    make = eagle(
        golden,
        WatchedEagle,
        vocabulary,
        notes=notes,
        late=late,
        answers=answers,
        _starts=weakref.WeakKeyDictionary(),
    )
    return core_of(golden, make, **({"speculative": SMALL} | settings)), notes


def ask(request_id: str, prompt: Prompt, **how: Any) -> GenerateRequest:
    return asking(request_id, prompt, **({"max_tokens": NUM_TOKENS} | how))


def play(core: EngineCore, prompts: list[Prompt], gap: int = 0, **how: Any) -> dict[str, Story]:
    return run_all(core, [(i * gap, ask(str(i), prompt, **how)) for i, prompt in enumerate(prompts)])


def check(golden: Golden, notes: list[Note], vocabulary: int | None = 40, *, trees: bool = True) -> None:
    """Everything noted is what dense runs say: the draft's KV, the page ends, every candidate's score."""
    dense = DenseDraft(golden, draft_folder(golden.folder, vocabulary))
    assert notes
    for note in notes:
        where = f"request {note.request_id} with {len(note.token_ids)} tokens"
        seen = note.seen(dense)
        for ours, truth in zip((note.keys, note.values), dense.kv(seen), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-3, msg=lambda m, w=where: f"{w}: {m}")
        if len(note.ends):
            size = note.page_size
            ends = seen.features[size : len(note.ends) * size + 1 : size]
            torch.testing.assert_close(note.ends, ends, rtol=1e-3, atol=1e-3)
        if trees:
            want = dense.tree(
                seen,
                num_steps=note.steps,
                topk=note.topk,
                own_steps=note.own_steps,
                own_topk=note.own_topk,
            )
            assert note.proposed.keys() == want.keys(), where
            for path, score in want.items():  # rounding adds up from level to level
                near = pytest.approx(score, rel=1e-4, abs=1e-3 * len(path))
                assert note.proposed[path] == near, f"{where}: {path}"


def grows_in_one_call(core: EngineCore) -> bool:
    drafter: Any = core._speculator.drafter
    return drafter.model.grower is not None


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize(
    ("family", "vocabulary", "page_size"),
    [("llava", 40, 4), ("llama", None, 1), ("qwen2", 40, 16), ("qwen3", None, 5), ("mistral_sliding", 40, 3)],
)
def test_trap_1_features_pictures_and_trees_are_those_of_a_dense_draft(
    family: Family, vocabulary: int | None, page_size: int, in_one_call: bool, tiny: BuildCheckpoint
) -> None:
    """Right layer, pictures in the draft's prompt, masks, positions, slots and states of every level."""
    golden = load_golden(tiny(family))
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, vocabulary, page_size=page_size, cpu_kernels=in_one_call)
    asked = [
        SpeculativeParams(),
        SpeculativeParams(topk=2),
        SpeculativeParams(num_steps=2),
        SpeculativeParams(topk=1, num_steps=3),
    ]
    arrivals = [(i, ask(str(i), prompt, speculative=asked[i])) for i, prompt in enumerate(prompts)]
    stories = run_all(core, arrivals)
    check(golden, notes, vocabulary)
    accepted = [story.end.speculation.num_accepted_draft_tokens for story in stories.values()]  # type: ignore[union-attr]
    assert sum(accepted) > 10, "the KV of accepted drafts must be part of this"


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("vocabulary", [None, 67])
def test_deep_and_wide_trees_equal_dense_ones(
    vocabulary: int | None, in_one_call: bool, tiny: BuildCheckpoint
) -> None:
    """By the CPU kernels, and level by level. No processor's vectors have 67 numbers or a divisor of that."""
    golden = load_golden(tiny("llama"))
    prompts = [golden.prompt("Hello"), golden.prompt("And a longer one beside it.")]
    limits = SpeculativeConfig(num_steps=9, topk=8, num_draft_tokens=63)  # all 64 places of the mask
    core, notes = watched(golden, prompts, vocabulary, speculative=limits, cpu_kernels=in_one_call)
    assert grows_in_one_call(core) == (core.target.kernels is not None) == in_one_call
    play(core, prompts, max_tokens=11)
    check(golden, notes[:2], vocabulary)


@pytest.mark.parametrize("in_one_call", [True, False])
def test_a_vocabulary_smaller_than_topk_is_enough(in_one_call: bool, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llama"))
    prompts = [golden.prompt("Hello"), golden.prompt("Two tokens only.")]
    core, notes = watched(golden, prompts, 2, cpu_kernels=in_one_call)
    assert grows_in_one_call(core) == (core.target.kernels is not None) == in_one_call
    play(core, prompts)
    check(golden, notes, 2)


@pytest.mark.parametrize("eager", [1, 9])
def test_trap_4_the_draft_never_reads_ahead_of_chunks_and_pictures(
    eager: int, tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts in chunks that end before, inside and behind pictures, followed chunk by chunk."""
    monkeypatch.setattr("engine.draft.follower.CATCH_UP_TOKENS", eager)
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, max_num_batched_tokens=13, max_num_encoder_tokens=16)
    play(core, prompts, gap=2)
    check(golden, notes, trees=False)
    assert {note.request_id for note in notes} == {"0", "1", "2", "3"}


def test_trap_6_a_prefix_hit_serves_the_draft_and_drops_no_page(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)[1:3]
    core, notes = watched(golden, prompts)
    play(core, prompts)
    notes.clear()
    stories = play(core, prompts)
    check(golden, notes)
    for name, story in stories.items():
        prompt = prompts[int(name)]
        first = next(note for note in notes if note.request_id == name)
        hit = (len(prompt.token_ids) - 1) // 4 * 4
        assert story.end.num_cached_tokens == first.started == first.adopted == hit
        assert first.waited == len(first.token_ids) - hit, "the draft looked at cached tokens again"


def test_a_second_user_of_a_prompt_shares_the_draft_pages_of_the_first(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompt = golden.prompt("What is this?", (1,))
    core, notes = watched(golden, [prompt])
    run_all(core, [(0, ask("0/first", prompt)), (3, ask("0/second", prompt)), (3, ask("0/third", prompt))])
    check(golden, notes, trees=False)
    starts = {note.request_id: note.adopted for note in notes}
    assert starts["0/first"] == 0
    assert starts["0/second"] == starts["0/third"] == (len(prompt.token_ids) - 1) // 4 * 4


def test_pictures_and_salts_have_draft_pages_of_their_own(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt("What is this?", (seed,)) for seed in (1, 2)]
    core, notes = watched(golden, prompts)
    run_all(core, [(0, ask("0", prompts[0]))])
    run_all(core, [(0, ask("1", prompts[1])), (0, ask("0/salted", prompts[0], salt="s"))])
    check(golden, notes, trees=False)
    starts = {note.request_id: note.adopted for note in notes}
    assert starts["1"] <= prompts[1].images[0].start
    assert starts["0/salted"] == 0


def test_trap_2_positions_are_no_slots_where_the_draft_has_less_context(tiny: BuildCheckpoint) -> None:
    """The target hits more than the draft: the draft goes on with less, and at the right positions."""
    golden = load_golden(tiny("llava"))
    short, long = golden.prompt("One", (1,)), golden.prompt("One two three four five six seven", (1,))
    core, notes = watched(golden, [short, long])
    off = SpeculativeParams(enabled=False)
    run_all(core, [(0, ask("0", short))])
    run_all(core, [(0, ask("1/plain", long, speculative=off))])
    notes.clear()
    story = run_all(core, [(0, ask("1", long))])["1"]
    golden.compare(story.token_ids, long, NUM_TOKENS, "with a shorter draft hit")
    assert 0 < notes[0].adopted < notes[0].started, "the draft must have skipped tokens"
    check(golden, notes)
    # What it wrote at other slots than the tokens' own must not be found by who has all the context.
    notes.clear()
    run_all(core, [(0, ask("1/again", long))])
    assert notes[0].adopted < notes[0].started, "pages of skipped tokens were shared"
    check(golden, notes, trees=False)


def test_a_draft_without_any_hit_starts_in_the_middle(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompt = golden.prompt("What is this?", (1,))
    core, notes = watched(golden, [prompt])
    run_all(core, [(0, ask("0/plain", prompt, speculative=SpeculativeParams(enabled=False)))])
    run_all(core, [(0, ask("0", prompt))])
    assert (notes[0].adopted, notes[0].started) == (0, (len(prompt.token_ids) - 1) // 4 * 4)
    check(golden, notes)


def test_speculation_that_starts_late_is_caught_up_in_one_pass(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, late=6)
    play(core, prompts, gap=1)
    assert all(len(n.token_ids) - len(prompts[int(n.request_id)].token_ids) >= 6 for n in notes)
    check(golden, notes, trees=False)


@pytest.mark.parametrize("eager", [1, 4])
def test_plain_decoding_for_long_costs_no_draft_its_place(
    eager: int, tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for drafts is bounded for all together: before it is full, they catch up. The step that does
    so may be the one that drafts.
    """
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    most = sum(len(prompt.token_ids) + 1 for prompt in prompts) + 4
    monkeypatch.setattr("engine.draft.features.MAX_WAITING_IN_ALL", most)
    monkeypatch.setattr("engine.draft.follower.CATCH_UP_TOKENS", eager)
    monkeypatch.setattr("engine.draft.features.FeatureStore.is_crowded", True)
    core, notes = watched(golden, prompts, late=NUM_TOKENS - 3)
    play(core, prompts)
    assert {note.request_id for note in notes} == {"0", "1", "2", "3"}
    check(golden, notes, trees=False)


def test_tokens_that_overflow_the_buffer_end_speculation_for_that_request_alone(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    monkeypatch.setattr("engine.draft.features.MAX_WAITING", len(prompts[2].token_ids) - 1)
    core, notes = watched(golden, prompts, late=1, enable_prefix_caching=False)
    stories = play(core, prompts)
    for i, prompt in enumerate(prompts):
        golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"prompt {i}")
        too_long = len(prompt.token_ids) >= len(prompts[2].token_ids)
        assert bool(stories[str(i)].histogram) is not too_long
    check(golden, notes, trees=False)


def test_preemption_rebuilds_what_the_draft_holds(tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny("llava"))
    prompts = [golden.prompt(f"Story {i}", (1,) if i % 2 else ()) for i in range(5)]
    longest = max(len(p.token_ids) for p in prompts) + 40
    page_bytes = target_of(golden.folder)[0].kv_shape.bytes_per_token * 4
    for caching in (True, False):
        core, notes = watched(
            golden,
            prompts,
            num_tokens=40,
            max_num_seqs=5,
            kv_cache_memory=(-(-longest // 4) + 5) * page_bytes,
            max_model_len=longest,
            enable_prefix_caching=caching,
        )
        stories = play(core, prompts, max_tokens=40)
        assert core.stats.num_preemptions > 0, "the test must preempt"
        check(golden, notes, trees=False)
        for i, prompt in enumerate(prompts):
            golden.compare(stories[str(i)].token_ids, prompt, 40, f"prompt {i}, caching {caching}")


def test_trap_5_what_waits_for_the_draft_is_nobody_elses_memory(
    tiny: BuildCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of a step's tensors afterwards must not reach the draft."""
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    core, notes = watched(golden, prompts, late=3)
    real = core.target.forward
    last: list[torch.Tensor] = []

    def spoiling(context: Any, images: Any = ()) -> Any:
        with torch.inference_mode():
            for tensor in last:
                tensor.fill_(float("nan"))
        output = real(context, images)
        last[:] = output
        return output

    monkeypatch.setattr(core.target, "forward", spoiling)
    play(core, prompts, gap=1)
    check(golden, notes, trees=False)


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("part", ["fc.weight", "layer.self_attn.k_proj.weight"])
def test_a_draft_of_broken_weights_proposes_nothing_and_harms_nobody(
    part: str, in_one_call: bool, tiny: BuildCheckpoint, tmp_path: Path
) -> None:
    golden = load_golden(tiny("llava"))
    prompts = prompts_of(golden)
    folder = Path(shutil.copytree(draft_folder(golden.folder, 40), tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    tensors[part].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors")
    core = core_of(golden, choose_drafter, draft=str(folder), speculative=SMALL, cpu_kernels=in_one_call)
    assert core.info.draft == "eagle"
    for attempt in ("cold", "warm"):
        stories = play(core, prompts)
        for i, prompt in enumerate(prompts):
            golden.compare(stories[str(i)].token_ids, prompt, NUM_TOKENS, f"prompt {i}, {attempt}")
            assert stories[str(i)].histogram == []
