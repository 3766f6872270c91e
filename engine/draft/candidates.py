"""Draft candidates and the trees picked from them. No torch.

A *candidate* is one token after one parent. The candidates of a sequence are in the order in which they were
created, so a parent always precedes its children, and scores never increase from a parent to its child.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

INDEX_BITS = np.uint64(32)
INDEX_MASK = np.uint64(0xFFFFFFFF)


@dataclass(slots=True, frozen=True)
class Candidates:
    """At most C candidates for each of S sequences.

    ``token_ids`` int64 ``[S, C]``. ``parents`` int64 ``[S, C]``: index of the parent among the sequence's
    candidates, -1 for a child of the root (the sequence's last token). ``depths`` int64 ``[S, C]``: 1 for
    a child of the root. ``scores`` float32 ``[S, C]``: the draft's cumulative log-probability of the path
    from the root, ``-inf`` where there is no candidate. ``source_scores`` float32 ``[S, C, 2]``: if a draft
    and look-up were merged, the score from each of them, ``-inf`` where it proposed nothing.
    """

    token_ids: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    source_scores: npt.NDArray[np.float32] | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.token_ids)

    def spread(self, rows: Seq[bool]) -> Candidates:
        """Spread these candidates over the true ``rows``, in order; the other rows have no candidates."""
        wide, here = nothing(len(rows), self.token_ids.shape[1]), np.asarray(rows)
        wide.token_ids[here], wide.parents[here] = self.token_ids, self.parents
        wide.depths[here], wide.scores[here] = self.depths, self.scores
        if self.source_scores is None:
            return wide
        source_scores = np.full((*wide.scores.shape, 2), -np.inf, np.float32)
        source_scores[here] = self.source_scores
        return replace(wide, source_scores=source_scores)

    def check(self) -> None:
        """Assert that parents precede their children and that scores never increase along a path."""
        index = np.arange(self.parents.shape[1])
        real = np.isfinite(self.scores)
        assert (self.parents[real] < np.broadcast_to(index, self.parents.shape)[real]).all()
        inner = real & (self.parents >= 0)
        above = np.take_along_axis(self.scores, self.parents.clip(0), axis=1)
        assert (above[inner] >= self.scores[inner]).all(), "a child scores above its parent"
        depth_above = np.where(
            self.parents < 0, 0, np.take_along_axis(self.depths, self.parents.clip(0), axis=1)
        )
        assert (self.depths[real] == depth_above[real] + 1).all()


def nothing(num_sequences: int, width: int = 0) -> Candidates:
    """Return an empty set of candidates for ``num_sequences`` sequences."""
    shape = num_sequences, width
    return Candidates(
        np.zeros(shape, np.int64),
        np.full(shape, -1, np.int64),
        np.zeros(shape, np.int64),
        np.full(shape, -np.inf, np.float32),
    )


@dataclass(slots=True, frozen=True)
class DraftTree:
    """The tree of one sequence, without its root. Row 0 of its span is the root, row ``i + 1`` node ``i``.

    ``token_ids``, ``parents`` (-1: the root), ``depths`` (from 1) int64 ``[M]``; ``masks`` uint64
    ``[M + 1]``: bit ``j`` of the mask of row ``i`` is set if row ``j`` is row ``i`` or one of its ancestors.
    ``scores`` float32 ``[M]`` and ``source_scores`` ``[M, 2]``: as in ``Candidates``.
    """

    token_ids: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    depths: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    masks: npt.NDArray[np.uint64]
    source_scores: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)


def pick(candidates: Candidates, chosen: npt.NDArray[np.bool_]) -> list[DraftTree | None]:
    """Build the trees of the ``chosen`` candidates, ``None`` for a sequence without any.

    ``chosen``: bool ``[S, C]``; it must include the parent of every chosen candidate. Loops over the depth,
    not over nodes.
    """
    if not chosen.any():
        return [None] * candidates.num_sequences
    counts = chosen.sum(axis=1)
    width = int(counts.max())
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :width]  # chosen ones first, in order
    rank = np.cumsum(chosen, axis=1) - 1  # index of a chosen candidate among the chosen ones
    here = np.arange(width) < counts[:, None]
    old_parents = np.take_along_axis(candidates.parents, order, axis=1)
    parents = np.where(old_parents < 0, -1, np.take_along_axis(rank, old_parents.clip(0), axis=1))
    parents = np.where(here, parents, -1)
    masks = _masks(parents, np.where(here, np.take_along_axis(candidates.depths, order, axis=1), 0))
    columns = [np.take_along_axis(a, order, axis=1) for a in (candidates.token_ids, candidates.depths)]
    scores = np.take_along_axis(candidates.scores, order, axis=1)
    source_scores = candidates.source_scores
    if source_scores is not None:
        source_scores = np.take_along_axis(source_scores, order[:, :, None], axis=1)
    return [
        DraftTree(
            columns[0][s, :n],
            parents[s, :n],
            columns[1][s, :n],
            scores[s, :n],
            masks[s, : n + 1],
            None if source_scores is None else source_scores[s, :n],
        )
        if n
        else None
        for s, n in enumerate(counts.tolist())
    ]


def _masks(parents: npt.NDArray[np.int64], depths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return the ancestor masks, uint64 ``[S, M + 1]``, of nodes with these parents; the root is row 0."""
    own = np.uint64(1) << np.arange(1, parents.shape[1] + 1, dtype=np.uint64)
    masks = np.zeros((parents.shape[0], parents.shape[1] + 1), dtype=np.uint64)
    masks[:, 0] = 1
    for depth in range(1, int(depths.max()) + 1):
        above = np.take_along_axis(masks, parents + 1, axis=1) | own
        masks[:, 1:] = np.where(depths == depth, above, masks[:, 1:])
    return masks


def best_first(scores: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.int64]:
    """Return the indices ``[S, min(C, width)]`` of each sequence's best candidates, best first.

    Ties keep the order of creation, so that a parent always precedes its child.
    """
    # Pack each candidate into one integer that sorts by its score's distance from 0, then by its index.
    distance = np.abs(np.minimum(scores, 0)).view(np.uint32).astype(np.uint64) << INDEX_BITS
    keys = np.sort(distance | np.arange(scores.shape[1], dtype=np.uint64), axis=1)[:, :width]
    found: npt.NDArray[np.int64] = (keys & INDEX_MASK).astype(np.int64)
    return found
