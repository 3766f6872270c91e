"""What families with three position axes add to ``test_families``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given as each
from hypothesis import strategies as st
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from engine.config import TreeLimits
from engine.messages import SpeculativeParams
from engine.mrope import grid_positions
from engine.pages import PagePool, PageTable
from engine.sequence import Sequence
from processing.prompt import ImageInput, Prompt
from tests.conftest import BuildCheckpoint
from tests.engine.test_eagle_drafter import ask, check, watched
from tests.golden.reference import Golden, Sized, load_golden, request
from tests.golden.speculating import num_accepted, run_all, target_of
from tests.models import Family

QWENS: tuple[Family, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WIDE: Sized = (2, (90, 31))
TALL: Sized = (3, (33, 70))


@pytest.fixture(scope="module")
def golden(tiny: BuildCheckpoint) -> Golden:
    return load_golden(tiny("qwen2_vl"))


def picture_at(start: int, rows: int, columns: int) -> ImageInput:
    """A picture of so many patches, two by two of which are a token."""
    grid = np.array([[1, rows, columns]])
    return ImageInput(hash=b"", spans=[(start, rows * columns // 4)], tensors={"image_grid_thw": grid})


def test_positions_are_those_that_are_drawn_in_the_docstring() -> None:
    found = grid_positions(9, [picture_at(1, 4, 6)], 2)
    drawn = "011111145 011122245 012312345"
    assert found.tolist() == [[int(digit) for digit in axis] for axis in drawn.split()]


@lru_cache(maxsize=1)
def transformers_model() -> Qwen2VLModel:
    """It computes positions; weights are not needed for that."""
    layers = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    with torch.device("meta"):
        return Qwen2VLModel(Qwen2VLConfig(vision_config={"depth": 1}, text_config=layers))


grids = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)), max_size=4)


@each(pictures=grids, behind=st.integers(0, 3), start=st.integers(0, 60), length=st.integers(1, 20))
def test_any_part_of_a_sequence_has_the_positions_of_the_whole(
    pictures: list[tuple[int, int, int]], behind: int, start: int, length: int
) -> None:
    """Against transformers' own; generated tokens go on by one, whatever part of a sequence is asked for."""
    images, kinds = [], []
    for text, rows, columns in pictures:
        kinds += [0] * (text + 1)  # with no text between, transformers takes two pictures for one
        images.append(picture_at(len(kinds), 2 * rows, 2 * columns))
        kinds += [1] * (rows * columns)
    kinds += [0] * (behind + (not pictures))
    theirs, deltas = transformers_model().get_rope_index(
        torch.zeros(1, len(kinds), dtype=torch.int64),
        mm_token_type_ids=torch.tensor([kinds]),
        image_grid_thw=torch.from_numpy(np.array([i.tensors["image_grid_thw"][0] for i in images])),
    )
    prompt = Prompt(token_ids=[0] * len(kinds), images=images)
    sequence = Sequence.from_request(
        request("a", prompt, max_tokens=9),
        arrival=0,
        table=PageTable(PagePool(9), 4),
        eos_token_ids=frozenset(),
        max_model_len=99,
        limits=TreeLimits(num_steps=6, topk=6, num_draft_tokens=32),
        prompt_positions=grid_positions(len(kinds), images, 2),
    )
    later = torch.arange(len(kinds), 90) + deltas[0]
    whole = torch.cat([theirs[:, 0], later.expand(3, -1)], dim=1).numpy()
    np.testing.assert_array_equal(sequence.positions(start, start + length), whole[:, start : start + length])


@pytest.mark.parametrize(
    ("family", "vocabulary", "page_size"), [("qwen2_vl", 40, 4), ("qwen2_5_vl", None, 7), ("qwen3_vl", 40, 3)]
)
def test_the_draft_sees_what_a_dense_one_sees(
    family: Family, vocabulary: int | None, page_size: int, tiny: BuildCheckpoint
) -> None:
    """Its positions in prompts, answers and trees among others: wrong ones would only cost acceptance."""
    golden = load_golden(tiny(family))
    shown: list[list[Sized]] = [[], [TALL], [TALL, WIDE]]
    prompts = [golden.prompt("What is in this picture?", pictures) for pictures in shown]
    # Without the kernels, whose rounding grows along a path of random weights.
    how = {"page_size": page_size, "max_num_batched_tokens": 40, "cpu_kernels": False}
    core, notes = watched(golden, prompts, vocabulary, **how)
    stories = run_all(core, [(i, ask(str(i), prompt)) for i, prompt in enumerate(prompts)])
    check(golden, notes, vocabulary)
    assert num_accepted(stories) > 8, "the KV of accepted drafts must be part of this"


def test_a_draft_that_skips_tokens_goes_on_at_their_positions(golden: Golden) -> None:
    """Slots of the draft, tokens and positions are three different numbers here."""
    short, long = golden.prompt("One", [WIDE]), golden.prompt("One two three four five six", [WIDE])
    core, notes = watched(golden, [short, long])
    run_all(core, [(0, ask("0", short))])
    run_all(core, [(0, ask("1/plain", long, speculative=SpeculativeParams(enabled=False)))])
    notes.clear()
    run_all(core, [(0, ask("1", long))])
    assert 0 < notes[0].adopted < notes[0].started, "the draft must have skipped tokens"
    check(golden, notes)


@pytest.mark.parametrize("family", QWENS)
def test_a_picture_that_is_not_what_its_grid_says_is_refused(family: Family, tiny: BuildCheckpoint) -> None:
    golden = load_golden(tiny(family))
    adapter = target_of(golden.folder)[0].adapter
    (image,) = golden.prompt("What?", [WIDE]).images
    adapter.check_image(image)
    grid, pixels = image.tensors["image_grid_thw"], image.tensors["pixel_values"]
    (start, length), twice = image.spans[0], np.concatenate([pixels, pixels])
    for reason, spans, wrong in (
        ("multiples of 2", image.spans, {"image_grid_thw": grid + np.array([1, 0, 0])}),
        ("multiples of 2", image.spans, {"image_grid_thw": grid + np.array([0, 0, 1])}),
        ("multiples of 2", image.spans, {"image_grid_thw": -grid}),
        ("image_grid_thw must be", image.spans, {"image_grid_thw": grid[0]}),
        ("image_grid_thw must be", image.spans, {"image_grid_thw": grid.astype(np.int32)}),
        ("pixel_values must be", image.spans, {"pixel_values": pixels[:-1]}),
        ("pixel_values must be", image.spans, {"pixel_values": pixels[:, :-1]}),
        ("24 placeholder", image.spans, {"image_grid_thw": grid * [1, 2, 1], "pixel_values": twice}),
        ("in a row", [(start, length - 1), (start + length, 1)], {}),
    ):
        changed = ImageInput(hash=image.hash, spans=spans, tensors=image.tensors | wrong)
        with pytest.raises(ValueError, match=reason):
            adapter.check_image(changed)
