"""Estimates how many tokens a round of chain speculation at temperature 0 would yield on held-out answers.

Every answer is walked as the engine would generate it: a round starts at the last known token, drafts
``num_steps`` tokens, keeps those that are also the target's most likely ones, adds the target's own next
token, and the following round starts there. The drafts from every possible start are computed at once
(:mod:`training.unroll`).

The result is exact where the answers are the target's own greedy ones. Elsewhere a round ends at the first
token that the target would not have chosen, since its continuation from there is unknown, so the result is a
lower bound. ``greedy_share`` tells how often the data and the target agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.draft.eagle import EagleDraft
from training.batches import Batch
from training.compression import Choose, place
from training.rows import Rows, shortened, whole_rows
from training.teacher import Teacher
from training.unroll import unrolled

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Acceptance on D dialogues.

    ``histograms`` int64 ``[D, num_steps + 1]``: number of rounds by how many drafts were accepted. ``gained``
    int64 ``[D]``: tokens of all rounds, including the target's own. ``num_greedy``: how many of the
    ``num_predicted`` tokens in the data are the target's most likely ones. ``num_kept``: how many of the
    ``num_visual`` visual tokens the draft saw.
    """

    histograms: npt.NDArray[np.int64]
    gained: npt.NDArray[np.int64]
    num_greedy: int
    num_predicted: int
    num_visual: int = 0
    num_kept: int = 0

    @property
    def histogram(self) -> npt.NDArray[np.int64]:
        return self.histograms.sum(axis=0)

    @property
    def length(self) -> float:
        """Mean number of tokens per round, including the bonus token."""
        return int(self.gained.sum()) / max(1, int(self.histograms.sum()))

    def vector(self) -> list[int]:
        """Return the counts as a list that can be summed over processes."""
        counts = [self.num_greedy, self.num_predicted, self.num_visual, self.num_kept]
        return [int(self.gained.sum()), *counts, *self.histogram.tolist()]

    @classmethod
    def from_vector(cls, values: list[int]) -> Acceptance:
        """Rebuild from :meth:`vector`, with all dialogues merged into one."""
        gained, *counts = map(int, values[:5])
        return cls(np.array([values[5:]], np.int64), np.array([gained]), *counts)

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
    """Return how many drafts each round over tokens ``first`` to ``last`` accepts, and the tokens gained.

    ``hits`` ``[steps, N]``: whether draft and target agree at this slot in this step. ``agrees`` ``[N]``:
    whether the target agrees with the data on the token after this slot. Token ``first`` is known from the
    forward pass over the prompt.
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
    """Return the first and last token of every run of predicted tokens in a row.

    ``predicts`` ``[N]`` says of each slot whether the token after it is predicted. The first token of a
    dialogue never is, so no run extends from one dialogue into the next.
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
    draft: EagleDraft,
    teacher: Teacher,
    batch: Batch,
    rows: Rows,
    target_ids: Tensor,
    vocabulary: Tensor | None,
    steps: int,
) -> Tensor:
    """Return the ``hits`` of :func:`walk`, bool ``[steps, B, N]``, false where nothing is predicted.

    ``rows``: the rows of ``batch``, compressed or not. ``target_ids`` int64 ``[P]``: the target's most likely
    token at each predicted position. The head runs in float32, so that near-ties are decided as they would be
    when serving.
    """
    slots = rows.slots[batch.predicts.flatten()]
    drafted = [state.flatten(0, 1)[slots].float() for state in unrolled(draft, rows, steps)]
    head = teacher.head(vocabulary)
    hits = batch.predicts.new_zeros((steps, *batch.ids.shape))
    with torch.autocast(teacher.device.type, enabled=False):
        for step, state in enumerate(drafted):
            ids = head(state).argmax(-1)
            hits[step, batch.predicts] = (ids if vocabulary is None else vocabulary[ids]) == target_ids
    return hits & (rows.slots.view(batch.ids.shape) >= 0)


class _Tally:
    """Accumulates the acceptance of one way to compress pictures over all batches."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._rounds: list[npt.NDArray[np.int64]] = []
        self._gained: list[int] = []
        self._counts = np.zeros(4, np.int64)

    def add(self, batch: Batch, hits: Bools, agrees: Bools, num_visual: int, num_kept: int) -> None:
        found: dict[tuple[int, int], int] = {}
        for row in range(len(batch.ids)):
            for first, last in answers(batch.predicts[row].cpu().numpy()):
                key = (row, int(batch.dialogues[row, first]))
                if key not in found:
                    found[key] = len(self._gained)
                    self._gained.append(0)
                    self._rounds.append(np.zeros(self._steps + 1, np.int64))
                accepted, gained = walk(hits[:, row], agrees[row], first, last)
                np.add.at(self._rounds[found[key]], accepted, 1)
                self._gained[found[key]] += gained
        self._counts += (int(agrees.sum()), int(batch.predicts.sum()), num_visual, num_kept)

    def acceptance(self) -> Acceptance:
        rounds = np.array(self._rounds, np.int64).reshape(-1, self._steps + 1)
        return Acceptance(rounds, np.array(self._gained, np.int64), *map(int, self._counts))


@torch.no_grad()
def measure(
    draft: EagleDraft,
    teacher: Teacher,
    batches: Iterable[Batch],
    vocabulary: Tensor | None,
    *,
    steps: int,
    bf16: bool,
    choices: Mapping[str, Choose],
) -> dict[str, Acceptance]:
    """Measure acceptance over all answers in ``batches``, with pictures compressed in each of ``choices``."""
    tallies = {name: _Tally(steps) for name in choices}
    for given in batches:
        batch = given.to(teacher.device)
        with torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
            seen = teacher.see(batch)
        placed = place(batch, seen.scores, teacher.grids)
        target_ids = teacher.head(None)(seen.features[batch.predicts]).argmax(-1)
        agrees = torch.zeros_like(batch.predicts)
        agrees[batch.predicts] = batch.ids.roll(-1, dims=1)[batch.predicts] == target_ids
        for name, choose in choices.items():
            ways = choose(batch, seen.features, placed)
            with torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
                whole = whole_rows(draft, seen.embeddings, seen.features, seen.positions, batch.dialogues)
                rows = shortened(whole, placed, ways)
                hits = compare(draft, teacher, batch, rows, target_ids, vocabulary, steps)
            kept = sum(way.num_kept(one.picture) for way, one in zip(ways, placed, strict=True))
            visual = sum(one.picture.num_tokens for one in placed)
            tallies[name].add(batch, hits.cpu().numpy(), agrees.cpu().numpy(), visual, kept)
    return {name: tally.acceptance() for name, tally in tallies.items()}
