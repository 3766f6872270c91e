"""Verification is sampling: walk each tree from its root by drawing the target's own next token.

At a node the next token is drawn from the target's distribution after every sampling parameter; if that
token is a child, the walk steps to it, else it ends and the token is the bonus. The drafts are candidates
that do not depend on the noise, so this is exactly plain decoding: with one uniform number per output
position the tokens are the very same. All trees are walked together, one depth at a time.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.messages import TokenLogprobs
from engine.plan import Span
from engine.sampling import NO_TOKEN, DrawRow, draw, is_greedy
from engine.sequence import Sequence


@dataclass(slots=True)
class Walk:
    """What one span gained. ``path``: the accepted nodes of its tree, root first left out; ``token_ids``:
    theirs and the bonus token, one more than ``path`` unless nothing could be drawn, ``logprobs`` with them.
    """

    path: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None


@torch.inference_mode()
def walk(logits: torch.Tensor, spans: Seq[Span]) -> list[Walk]:
    """Walk all ``spans``. ``logits``: float32 ``[R, vocab]``, for each span the row of its last token and
    then those of its tree's nodes. Costs a draw and a device-to-host copy a depth; greedy spans without
    penalties and logprobs cost one of each together.
    """
    starts = np.cumsum([0] + [1 + _num_nodes(span) for span in spans])
    walks = [Walk(logprobs=None if span.sequence.sampling.logprobs is None else []) for span in spans]
    plain = _plain_choices(logits, spans, starts)
    at = [-1] * len(spans)  # node of each walk; -1 is the root
    active = list(range(len(spans)))
    while active:
        rows = [int(starts[i]) + 1 + at[i] for i in active]
        drawn = _draw(logits, rows, [spans[i] for i in active], [walks[i] for i in active], plain)
        active = [
            i for i, token in zip(active, drawn, strict=True) if _step(spans[i], walks[i], at, i, token)
        ]
    return walks


def _step(span: Span, walked: Walk, at: list[int], index: int, token_id: int) -> bool:
    """Take one drawn token; whether it was drafted, so that the walk goes on."""
    if token_id == NO_TOKEN:
        # Nothing follows this node. It becomes the bonus token: run again alone, it fails by itself.
        if walked.path:
            walked.path.pop()
        return False
    walked.token_ids.append(token_id)
    if span.tree is None:
        return False
    children = np.flatnonzero((span.tree.parents == at[index]) & (span.tree.token_ids == token_id))
    if not len(children):
        return False
    at[index] = int(children[0])
    walked.path.append(at[index])
    return True


def _num_nodes(span: Span) -> int:
    return span.num_rows - span.length


def _is_plain(sequence: Sequence) -> bool:
    """Whether the likeliest token is the choice at every node, whatever the path."""
    p = sequence.sampling
    free = p.frequency_penalty == p.presence_penalty == 0.0 and p.repetition_penalty == 1.0
    return (
        is_greedy(p)
        and free
        and not p.logit_bias
        and p.logprobs is None
        and sequence.grammar is None
        and not sequence.must_not_stop()
    )


def _plain_choices(logits: torch.Tensor, spans: Seq[Span], starts: np.ndarray) -> dict[int, int]:
    """Row to token, for all rows of plain greedy spans: one pass over the logits and one copy."""
    rows = [
        row
        for i, span in enumerate(spans)
        if _is_plain(span.sequence)
        for row in range(int(starts[i]), int(starts[i + 1]))
    ]
    if not rows:
        return {}
    own = logits if len(rows) == len(logits) else logits[torch.tensor(rows, device=logits.device)]
    return dict(zip(rows, _likeliest(own), strict=True))


def _likeliest(logits: torch.Tensor) -> list[int]:
    """Of each row; NaN counts as the largest. For 8 rows of 49,152 numpy takes 0.3 ms; torch 1.1, with one
    thread or two.
    """
    if logits.is_cuda:
        best, tokens = logits.max(dim=-1)
        return torch.where(torch.isfinite(best), tokens, NO_TOKEN).tolist()
    found = logits.numpy()
    ids = found.argmax(axis=-1)
    values = np.take_along_axis(found, ids[:, None], axis=-1)[:, 0]
    return np.where(np.isfinite(values), ids, NO_TOKEN).tolist()


def _draw(
    logits: torch.Tensor, rows: list[int], spans: list[Span], walks: list[Walk], plain: dict[int, int]
) -> list[int]:
    """One token for each of ``rows``; adds the logprobs that were asked for."""
    tokens = [plain.get(row, NO_TOKEN) for row in rows]
    asked = [i for i, row in enumerate(rows) if row not in plain]
    if asked:
        index = torch.tensor([rows[i] for i in asked], device=logits.device)
        drawn = draw(logits[index], [_draw_row(spans[i].sequence, walks[i].token_ids) for i in asked])
        for j, i in enumerate(asked):
            tokens[i] = drawn.token_ids[j]
            kept = walks[i].logprobs
            if kept is not None and tokens[i] != NO_TOKEN:
                kept.append(drawn.logprobs_of(j, spans[i].sequence.sampling.logprobs or 0))
    return tokens


def _draw_row(sequence: Sequence, path_ids: list[int]) -> DrawRow:
    """``path_ids``: tokens accepted in this step, part of the context of the next draw."""
    forbidden = sequence.stop_token_ids if sequence.must_not_stop(len(path_ids)) else frozenset[int]()
    allowed = None
    if sequence.grammar is not None:
        allowed = sequence.grammar.mask(path_ids)
        if forbidden and not sequence.grammar.allows_besides(allowed, forbidden):
            forbidden = frozenset()  # the grammar is through: it may end before ``min_tokens``
    own = sequence.sampling, sequence.token_ids, sequence.num_prompt_tokens
    return DrawRow(*own, forbidden, allowed, path_ids)
