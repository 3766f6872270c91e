"""Rows whose pictures are compressed draft what they would draft alone, and text keeps its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from compressors.base import Compressor, Picture, TextOnly, Whole
from compressors.pool import Pool
from compressors.prune import RandomPrune
from engine.draft.eagle import EagleDraft
from training.rows import Placed, Rows, shifted, shortened, whole_rows
from training.student import new_draft
from training.unroll import unrolled

# Row 0: a dialogue with two pictures, the second in two parts, and one without. Row 1: one picture, padding.
DIALOGUES = torch.tensor([[0] * 16 + [1] * 4, [0] * 15 + [-1] * 5])
POSITIONS = torch.tensor([[*range(16), *range(4)], [*range(15), *range(5)]])
WIDTH = DIALOGUES.shape[1]
PLACED = [
    Placed(Picture(((2, 2),), b"a"), torch.arange(1, 5)),
    Placed(Picture(((1, 2), (1, 2)), b"b"), torch.tensor([6, 7, 9, 10])),
    Placed(Picture(((3, 3),), b"c"), WIDTH + torch.arange(2, 11)),
]
WAYS = [RandomPrune(2), Pool(2), Pool(4)]


def make(folder: Path) -> tuple[EagleDraft, Tensor, Tensor]:
    draft = new_draft(AutoConfig.from_pretrained(folder).get_text_config(), seed=3, like=None)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(4.0)  # the first weights are small: attention would hardly matter
    generator = torch.Generator().manual_seed(1)
    shape = (*DIALOGUES.shape, draft.feature_size)
    return draft, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def rows_of(folder: Path, ways: list[Compressor]) -> tuple[EagleDraft, Rows]:
    draft, embeddings, features = make(folder)
    return draft, shortened(whole_rows(draft, embeddings, features, POSITIONS, DIALOGUES), PLACED, ways)


def alone(
    draft: EagleDraft, joined: Tensor, positions: Tensor, later: list[tuple[Tensor, int]]
) -> list[Tensor]:
    """Return the states of one round, computed without other rounds.

    It has the slots ``joined`` ``[N, D]`` at ``positions``, then one slot for each embedding and position in
    ``later``, based on the state before it.
    """
    outputs = []
    for step in range(len(later) + 1):
        if step:
            embedding, position = later[step - 1]
            joined = torch.cat([joined, draft.join(outputs[-1], embedding)[None]])
            positions = torch.cat([positions, torch.tensor([position])])
        causal = torch.ones(len(joined), len(joined), dtype=torch.bool).tril()[None, None]
        outputs.append(draft.run(joined[None], positions[None], causal)[0, -1])
    return outputs


@pytest.mark.parametrize("ways", [WAYS, [TextOnly(), Whole(), Pool(9)]], ids=["few", "none, all and one"])
def test_a_round_behind_compressed_pictures_is_what_it_would_be_alone(
    ways: list[Compressor], tiny: Callable[..., Path]
) -> None:
    draft, embeddings, features = make(tiny("llama"))
    whole = whole_rows(draft, embeddings, features, POSITIONS, DIALOGUES)
    rows, steps = shortened(whole, PLACED, ways), 3
    with torch.no_grad():
        states = list(unrolled(draft, rows, steps))
    for row, length in ((0, 16), (1, 15)):
        joined = draft.join(shifted(features, DIALOGUES), embeddings)[row]
        slots: list[tuple[int, Tensor]] = []  # token whose place it takes, what the layer reads
        inside = set()
        for one, way in zip(PLACED, ways, strict=True):
            if int(one.slots[0]) // WIDTH == row:
                at = (one.slots % WIDTH).tolist()
                inside |= set(at)
                (done,) = way(joined[at], [one.picture])
                slots += [(at[s], v) for s, v in zip(done.sources.tolist(), done.values, strict=True)]
        slots += [(i, joined[i]) for i in range(length) if i not in inside]
        slots.sort(key=lambda slot: slot[0])
        for start in range(max(inside) + 1, length):
            seen = [slot for slot in slots if slot[0] <= start]
            later = [(embeddings[row, i], i) for i in range(start + 1, min(length, start + steps))]
            with torch.no_grad():
                expected = alone(
                    draft, torch.stack([v for _, v in seen]), torch.tensor([i for i, _ in seen]), later
                )
            for step, state in enumerate(expected):
                slot = int(rows.slots[row * WIDTH + start + step])
                assert int(rows.rounds.flatten()[slot]) >= step
                found = states[step].flatten(0, 1)[slot]
                torch.testing.assert_close(found, state, atol=1e-4, rtol=1e-4, msg=f"{row} {start} {step}")


def test_text_keeps_order_and_positions_and_rows_get_shorter(tiny: Callable[..., Path]) -> None:
    _, rows = rows_of(tiny("llama"), WAYS)
    assert rows.joined.shape[:2] == (2, 16)
    assert rows.dialogues.tolist() == [[0] * 12 + [1] * 4, [0] * 8 + [-1] * 8]
    for row, dialogue in ((0, 0), (0, 1), (1, 0)):
        positions = rows.positions[row][rows.dialogues[row] == dialogue].tolist()
        assert positions == sorted(set(positions))
    tokens = [(row, slot) for row in range(2) for slot in range(WIDTH) if DIALOGUES[row, slot] >= 0]
    visual = set(torch.cat([one.slots for one in PLACED]).tolist())
    for row, slot in tokens:
        new = int(rows.slots[row * WIDTH + slot])
        assert (new < 0) == (row * WIDTH + slot in visual)
        if new >= 0:
            assert int(rows.positions.flatten()[new]) == int(POSITIONS[row, slot])


def test_no_round_reaches_across_a_compressed_slot(tiny: Callable[..., Path]) -> None:
    """Row 1: two tokens of text, four slots of a picture, text, as in the docstring's drawing."""
    _, rows = rows_of(tiny("llama"), [Whole(), Whole(), Pool(2)])
    assert rows.rounds[0].tolist() == [*range(16), *range(4)]
    assert rows.rounds[1, :10].tolist() == [0, 1, -1, -1, -1, -1, 0, 1, 2, 3]


def test_whole_pictures_change_nothing(tiny: Callable[..., Path]) -> None:
    draft, embeddings, features = make(tiny("llama"))
    whole = whole_rows(draft, embeddings, features, POSITIONS, DIALOGUES)
    assert shortened(whole, PLACED, [Whole()] * 3) is whole
    assert whole.rounds[:, :15].tolist() == POSITIONS[:, :15].tolist()


def test_three_axes_go_with_their_tokens(tiny: Callable[..., Path]) -> None:
    draft, embeddings, features = make(tiny("qwen2_vl"))
    positions = torch.stack([POSITIONS, POSITIONS + 100, POSITIONS + 200])
    rows = shortened(whole_rows(draft, embeddings, features, positions, DIALOGUES), PLACED, WAYS)
    real = rows.dialogues >= 0
    assert rows.positions.shape == (3, *rows.dialogues.shape)
    for axis in (1, 2):
        assert bool(((rows.positions[axis] - rows.positions[0])[real] == 100 * axis).all())
