"""How many tokens a round of chain speculation at temperature 0 would yield on held-out answers.

Every answer is walked as the engine would: a round starts at the last known token, drafts ``num_steps``
tokens, keeps those that the target finds likeliest too, adds the target's own next token, and the following
round starts there. What the draft says of every start is computed at once (:mod:`training.unroll`).

Exact where the answers are the target's own greedy ones. Elsewhere a round ends at the first token that the
target would not have said, since nobody knows what it would have said after it: then it is a lower bound.
``greedy_share`` tells how often the data and the target agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.eagle import EagleDraft
from training.batches import Batch
from training.teacher import Teacher
from training.unroll import unrolled

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """``histogram`` int64 ``[num_steps + 1]``: rounds in which so many drafts were accepted. ``num_tokens``:
    gained in all rounds, the target's own included. ``num_greedy`` of ``num_predicted``: tokens of the data
    that the target finds likeliest."""

    histogram: npt.NDArray[np.int64]
    num_tokens: int
    num_greedy: int
    num_predicted: int

    @property
    def length(self) -> float:
        """Mean tokens a round, the bonus token included."""
        return self.num_tokens / max(1, int(self.histogram.sum()))

    def vector(self) -> list[int]:
        """For summing over processes."""
        return [self.num_tokens, self.num_greedy, self.num_predicted, *self.histogram.tolist()]

    @classmethod
    def from_vector(cls, values: list[int]) -> Acceptance:
        return cls(np.array(values[3:], np.int64), *map(int, values[:3]))

    def describe(self) -> dict[str, Any]:
        rounds = int(self.histogram.sum())
        at_least = self.histogram[::-1].cumsum()[::-1][1:]
        return {
            "acceptance_length": round(self.length, 4),
            "accepted_per_depth": [round(int(n) / max(1, rounds), 4) for n in at_least],
            "rounds": rounds,
            "greedy_share": round(self.num_greedy / max(1, self.num_predicted), 4),
        }


def walk(hits: Bools, agrees: Bools, first: int, last: int) -> tuple[list[int], int]:
    """Drafts accepted in each round over tokens ``first`` to ``last`` of a row, and the tokens gained.

    ``hits`` ``[steps, N]``: draft and target agree at this slot in this step. ``agrees`` ``[N]``: the target
    agrees with the data on the token after this slot. Token ``first`` is known from the prompt's own pass.
    """
    accepted, root = [], first
    while root < last:
        count = 0
        while count < min(len(hits), last - root) and hits[count, root + count]:
            count += 1
            if not agrees[root + count - 1]:
                break
        accepted.append(count)
        root += count + 1
    return accepted, last - first


def answers(predicts: Bools) -> list[tuple[int, int]]:
    """First and last token of every run of predicted tokens in a row; ``predicts`` ``[N]`` is of the token
    after. A dialogue's first token is never predicted, so no run goes on from one into the next.
    """
    runs: list[tuple[int, int]] = []
    for slot in np.flatnonzero(predicts).tolist():
        token = slot + 1
        if runs and runs[-1][1] == slot:
            runs[-1] = (runs[-1][0], token)
        else:
            runs.append((token, token))
    return runs


@torch.no_grad()
def compare(
    draft: EagleDraft, teacher: Teacher, batch: Batch, vocabulary: Tensor | None, steps: int, bf16: bool
) -> tuple[Tensor, Tensor]:
    """``hits`` bool ``[steps, B, N]`` and ``agrees`` bool ``[B, N]`` of :func:`walk`, false where nothing is
    predicted. The heads run in float32, so that near-ties fall as they would when serving.
    """
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
        seen = teacher.see(batch)
        features = seen.features
        states = unrolled(draft, seen.embeddings, features, seen.positions, batch.dialogues, steps)
        drafted = [state.float()[batch.predicts] for state in states]
    target_ids = teacher.head(None)(features[batch.predicts]).argmax(-1)
    head = teacher.head(vocabulary)
    hits = batch.predicts.new_zeros((steps, *batch.ids.shape))
    for step, state in enumerate(drafted):
        ids = head(state).argmax(-1)
        hits[step, batch.predicts] = (ids if vocabulary is None else vocabulary[ids]) == target_ids
    agrees = torch.zeros_like(batch.predicts)
    agrees[batch.predicts] = batch.ids.roll(-1, dims=1)[batch.predicts] == target_ids
    return hits, agrees


def measure(
    draft: EagleDraft,
    teacher: Teacher,
    batches: Iterable[Batch],
    vocabulary: Tensor | None,
    *,
    steps: int,
    bf16: bool,
) -> Acceptance:
    """Over all answers in ``batches``."""
    histogram = np.zeros(steps + 1, np.int64)
    num_tokens = num_greedy = num_predicted = 0
    for batch in batches:
        hits, agrees = compare(draft, teacher, batch.to(teacher.device), vocabulary, steps, bf16)
        hit, agree = hits.cpu().numpy(), agrees.cpu().numpy()
        num_greedy += int(agree.sum())
        num_predicted += int(batch.predicts.sum())
        for row in range(len(batch.ids)):
            for first, last in answers(batch.predicts[row].numpy()):
                accepted, gained = walk(hit[:, row], agree[row], first, last)
                np.add.at(histogram, accepted, 1)
                num_tokens += gained
    return Acceptance(histogram, num_tokens, num_greedy, num_predicted)
