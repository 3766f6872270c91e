"""All rounds of drafting at once are what each of them is alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig

from engine.draft.eagle import EagleDraft
from tests.training.targets import draft_chain
from training.rows import whole_rows
from training.student import new_draft
from training.unroll import step_mask, unrolled

LENGTHS = (7, 1, 5)  # three dialogues in a row, then two slots of padding
POSITIONS = torch.tensor([[*range(7), 0, *range(5), 0, 1]])
DIALOGUES = torch.tensor([[0] * 7 + [1] + [2] * 5 + [-1] * 2])


def make(folder: Path) -> tuple[EagleDraft, torch.Tensor, torch.Tensor]:
    draft = new_draft(AutoConfig.from_pretrained(folder), seed=3, like=None)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(4.0)  # the first weights are small: attention would hardly matter
    generator = torch.Generator().manual_seed(1)
    shape = (*POSITIONS.shape, draft.feature_size)
    return draft, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def test_the_mask_is_the_one_that_is_drawn_in_the_docstring() -> None:
    drawn = ["....|....|x...", "....|x...|.x..", "x...|.x..|..x.", "xx..|..x.|...x"]
    found = step_mask(torch.zeros(1, 4, dtype=torch.int64), 2)[0, 0]
    lines = ["".join("x" if seen else "." for seen in row) for row in found.tolist()]
    assert lines == [line.replace("|", "") for line in drawn]


def test_every_round_drafts_what_it_would_draft_alone(tiny: Callable[..., Path]) -> None:
    draft, embeddings, features = make(tiny("qwen3"))
    steps = 4
    with torch.no_grad():
        rows = whole_rows(draft, embeddings, features, POSITIONS, DIALOGUES)
        states = list(unrolled(draft, rows, steps))
    first, compared = 0, 0
    for length in LENGTHS:
        own = slice(first, first + length)
        for start in range(length):
            later = list(embeddings[0, own][start + 1 : start + steps])
            alone = draft_chain(draft, embeddings[0, own], features[0, own], start, later)
            for step, expected in enumerate(alone):
                found = states[step][0, first + start + step]
                assert torch.allclose(found, expected, atol=1e-4), (length, start, step)
                compared += 1
        first += length
    assert compared == (4 * 4 + 6) + 1 + (4 * 2 + 6)


def test_deeper_steps_train_the_draft_on_its_own_states(tiny: Callable[..., Path]) -> None:
    """The state that a step is given is the one that the step before gave, with its gradient."""
    draft, embeddings, features = make(tiny("llama"))
    features.requires_grad_()
    *_, last = unrolled(draft, whole_rows(draft, embeddings, features, POSITIONS, DIALOGUES), 3)
    last[0, 6].sum().backward()
    assert features.grad is not None
    reached = features.grad[0].abs().sum(-1) > 0
    # A round that started at slot 4 sees the true features of tokens 0 to 3 and no later ones.
    assert reached.tolist() == [True] * 4 + [False] * (len(reached) - 4)
