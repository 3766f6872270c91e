"""Merges the candidates of a draft and of n-gram look-up into one tree. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.draft.candidates import Candidates

Scores = npt.NDArray[np.float32]
DRAFT, LOOKUP = 0, 1
"""Column indices of ``source_scores``."""
Number = TypeVar("Number", np.int64, np.float32)


def merge(drafted: Candidates, found: Candidates, translate: Callable[[Scores], Scores]) -> Candidates:
    """Return all candidates of ``drafted``, followed by those of ``found`` that are not among them.

    ``translate`` converts look-up scores to equivalent draft scores. A candidate of both gets the better of
    the two, and no child scores above its parent. Loops over what was found, a few nodes per sequence.
    """
    width = found.scores.shape[1]
    scores = _wider(drafted.scores, width, -np.inf)
    source_scores = np.full((*scores.shape, 2), -np.inf, np.float32)
    source_scores[..., DRAFT] = scores
    merged = Candidates(
        _wider(drafted.token_ids, width, 0),
        _wider(drafted.parents, width, -1),
        _wider(drafted.depths, width, 0),
        scores,
        source_scores=source_scores,
    )
    worth = np.where(np.isfinite(found.scores), translate(found.scores), np.float32(-np.inf))
    for sequence in np.flatnonzero(np.isfinite(found.scores).any(axis=1)).tolist():
        _add(merged, drafted.scores.shape[1], found, worth, sequence)
    return merged


def _wider(values: npt.NDArray[Number], width: int, fill: float) -> npt.NDArray[Number]:
    """Append ``width`` columns with the value ``fill``."""
    rows, before = values.shape
    wider = np.full((rows, before + width), fill, values.dtype)
    wider[:, :before] = values
    return wider


def _add(merged: Candidates, end: int, found: Candidates, worth: Scores, sequence: int) -> None:
    """Write the candidates found for one sequence into its row, adding new ones from column ``end`` on."""
    assert merged.source_scores is not None
    tokens, parents = merged.token_ids[sequence], merged.parents[sequence]
    scores, source_scores = merged.scores[sequence], merged.source_scores[sequence, :, LOOKUP]
    places: list[int] = []  # columns of the found candidates in the merged row
    for index in np.flatnonzero(np.isfinite(found.scores[sequence])).tolist():
        above = int(found.parents[sequence, index])
        parent = -1 if above < 0 else places[above]
        token = found.token_ids[sequence, index]
        same = np.flatnonzero((parents[:end] == parent) & (tokens[:end] == token) & np.isfinite(scores[:end]))
        place = int(same[0]) if len(same) else end
        if place == end:
            tokens[end], parents[end] = token, parent
            merged.depths[sequence, end] = found.depths[sequence, index]
            end += 1
        limit = 0.0 if parent < 0 else scores[parent]
        scores[place] = max(scores[place], min(worth[sequence, index], limit))
        source_scores[place] = found.scores[sequence, index]
        places.append(place)
