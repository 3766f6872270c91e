"""The levels of draft trees as tensors: EAGLE-2's expansion (arXiv 2406.16858, section 4.1) for S sequences.

Everything runs on the device, without a copy to the host before the last level. Knows nothing of sequences,
pages or KV.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.draft.model import DraftModel

Ints = npt.NDArray[np.int64]
Grown = tuple[Ints, Ints, npt.NDArray[np.float32], int]
"""Token ids, parents and scores of candidates ``[S, C]``, level by level, and the number of root children."""


class Level(NamedTuple):
    """Candidates of one depth, K frontier nodes (or the root) times their children: ``[S, K * K]``.

    ``parents``: index of the parent among all candidates of its sequence.
    """

    token_ids: Tensor
    parents: Tensor
    scores: Tensor


class Frontier(NamedTuple):
    """The K best candidates of the last level, to be run next: ``[S, K]``, ``states`` ``[S, K, hidden]``.

    ``states``: those of their parents; ``indices``: their indices among the candidates; ``masks``: their
    ancestors among the nodes that have run, themselves included (own bit: K times the runs before, plus the
    column).
    """

    token_ids: Tensor
    states: Tensor
    scores: Tensor
    indices: Tensor
    masks: Tensor


def first_level(
    model: DraftModel, states: Tensor, topk: int, rank_limits: Tensor
) -> tuple[list[Level], Frontier]:
    """Return the children of the roots, from their ``states`` ``[S, hidden]``, and the first frontier.

    ``rank_limits`` int64 ``[S]``: the most children per node.
    """
    scores, indices = _best(model, states, topk, rank_limits)
    token_ids = model.token_ids(indices)
    columns = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    frontier = Frontier(
        token_ids,
        states[:, None].expand(-1, scores.shape[1], -1),
        scores,
        columns,
        torch.ones_like(columns) << columns,
    )
    return [Level(token_ids, torch.full_like(columns, -1), scores)], frontier


def children(model: DraftModel, frontier: Frontier, out: Tensor, rank_limits: Tensor) -> Level:
    """Return the children of a frontier that ran and gave ``out`` ``[S, K, hidden]``."""
    width = frontier.token_ids.shape[1]
    scores, indices = _best(model, out.flatten(0, 1), width, repeated(rank_limits, width))
    scores = scores.unflatten(0, (-1, width)) + frontier.scores[:, :, None]
    return Level(
        model.token_ids(indices).unflatten(0, (-1, width)).flatten(1),
        repeated(frontier.indices, width),
        scores.flatten(1),
    )


def next_frontier(frontier: Frontier, out: Tensor, levels: Seq[Level], run: int) -> Frontier:
    """Return the K best candidates of the newest level, whatever their parents."""
    newest, width = levels[-1], frontier.token_ids.shape[1]
    best = newest.scores.topk(width, dim=1)
    row = best.indices // width  # row of the parent in the frontier that just ran
    first = sum(level.scores.shape[1] for level in levels[:-1])
    own = torch.arange(width, device=row.device) + run * width
    return Frontier(
        newest.token_ids.gather(1, best.indices),
        out.gather(1, row[:, :, None].expand(-1, -1, out.shape[-1])),
        best.values,
        best.indices + first,
        frontier.masks.gather(1, row) | (torch.ones_like(row) << own),
    )


def repeated(tensor: Tensor, times: int) -> Tensor:
    """Repeat each element of the last dimension ``times`` times in a row; the result is contiguous."""
    return tensor[..., None].expand(*tensor.shape, times).flatten(-2).contiguous()


def to_host(levels: Seq[Level], count: int) -> Grown:
    """Copy all levels of the first ``count`` sequences to the host at once, viewing floats as integers."""
    scores = torch.cat([level.scores for level in levels], dim=1)[:count].contiguous()
    token_ids = torch.cat([level.token_ids for level in levels], dim=1)[:count].int()
    parents = torch.cat([level.parents for level in levels], dim=1)[:count].int()
    host = torch.stack([token_ids, parents, scores.view(torch.int32)]).cpu().numpy()
    width = levels[0].scores.shape[1]
    return host[0].astype(np.int64), host[1].astype(np.int64), host[2].view(np.float32), width


def _best(model: DraftModel, states: Tensor, topk: int, rank_limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and head rows of the likeliest continuations, ``[R, K]``.

    The log-probability is -inf beyond a row's limit and where a broken draft gives NaN.
    """
    log_probs = model.log_probs(states)
    best = torch.nan_to_num(log_probs, nan=float("-inf")).topk(min(topk, log_probs.shape[1]), dim=1)
    beyond = torch.arange(best.values.shape[1], device=states.device) >= rank_limits[:, None]
    return best.values.masked_fill(beyond, float("-inf")), best.indices
