"""An EAGLE drafter that writes down, at every round, what it holds and proposes, for a later comparison."""

from __future__ import annotations

import weakref
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from engine.draft.candidates import Candidates
from engine.draft.kv import DraftKV
from engine.plan import Span
from engine.runner import Outcome
from engine.sequence import Sequence
from processing.prompt import ImageInput
from tests.engine.dense_draft import DenseDraft, Path_, Seen
from tests.golden.drafts import SteeredEagle


@dataclass(slots=True)
class Note:
    """One sequence in one round. ``adopted``: slots from the draft's prefix hit; ``started``: tokens from the
    target's; ``waited``: tokens shown to the draft in this round. ``ends``: kept features of full pages.
    ``tags``: of the branches that its pictures went through.
    """

    request_id: str
    token_ids: list[int]
    images: list[ImageInput]
    adopted: int
    started: int
    waited: int
    steps: int
    topk: int
    own_steps: int
    own_topk: int
    page_size: int
    keys: torch.Tensor
    values: torch.Tensor
    ends: torch.Tensor
    proposed: dict[Path_, float]
    tags: list[str | None]

    @property
    def aligned(self) -> bool:
        return self.adopted == self.started

    def seen(self, dense: DenseDraft) -> Seen:
        rows = [*range(self.adopted), *range(self.started, len(self.token_ids))]
        return Seen(rows, *dense.target(self.token_ids, self.images))


class WatchedEagle(SteeredEagle):
    """``late``: output tokens that a request must have before it is drafted for."""

    notes: list[Note]
    late = 0
    _starts: weakref.WeakKeyDictionary[DraftKV, tuple[int, int]]

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        for span in spans:
            draft = span.sequence.draft
            if draft is not None and draft not in self._starts:
                self._starts[draft] = (draft.num_slots, draft.num_seen)
        super().keep(spans, outcome)

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        return sequence.num_output_tokens >= self.late and super().ready(sequence, num_steps, topk)

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        waited = [self.num_behind(sequence) for sequence in sequences]
        candidates = super().propose(sequences, num_steps, topk)
        for row, sequence in enumerate(sequences):
            self.notes.append(self._note(sequence, waited[row], num_steps, topk))
            self.notes[-1].proposed = by_path(self.unsteered, row)
        return candidates

    def _note(self, sequence: Sequence, waited: int, num_steps: int, topk: int) -> Note:
        draft = sequence.draft
        assert draft is not None
        own = sequence.tree_limits(num_steps, topk)
        slots = slots_of(draft.table.pages, draft.num_slots, self._page_size)
        full = sequence.num_computed // self._page_size
        return Note(
            sequence.request_id,
            sequence.token_ids.tolist(),
            sequence.images,
            *self._starts[draft],
            waited,
            num_steps,
            topk,
            own.num_steps,
            own.topk,
            self._page_size,
            self.cache.keys[0][slots].clone(),
            self.cache.values[0][slots].clone(),
            self._follower.features.page_ends[sequence.table.pages[:full]].clone(),
            {},
            [block.tag for block in draft.slots.blocks],
        )


def slots_of(pages: list[int], count: int, page_size: int) -> torch.Tensor:
    logical = torch.arange(count)
    return torch.tensor(pages)[logical // page_size] * page_size + logical % page_size


def by_path(candidates: Candidates, row: int) -> dict[Path_, float]:
    """The finite candidates of one sequence, by their tokens from the root."""
    paths: dict[int, Path_] = {-1: ()}
    for i in np.flatnonzero(np.isfinite(candidates.scores[row])).tolist():
        paths[i] = (*paths[int(candidates.parents[row, i])], int(candidates.token_ids[row, i]))
    del paths[-1]
    assert len(set(paths.values())) == len(paths), "one candidate twice"
    return {path: float(candidates.scores[row, i]) for i, path in paths.items()}
