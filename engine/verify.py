"""Tree verification by sampling: walk each tree from its root by drawing the target's own next token.

At each node the next token is drawn from the target's distribution after all sampling parameters. If that
token is a child of the node, the walk steps to it; otherwise the walk ends and the token is the bonus. The
drafts do not depend on the noise, so this is exactly plain decoding: with one uniform number per output
position the tokens are identical. All trees are walked together, one depth at a time.
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
    """The tokens that one span gained.

    ``path``: the accepted nodes of its tree, from the root down, without the root. ``token_ids``: their
    tokens and the bonus token, one more than ``path`` unless nothing could be drawn. ``logprobs``: one per
    token.
    """

    path: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None


@torch.inference_mode()
def walk(logits: torch.Tensor, spans: Seq[Span]) -> list[Walk]:
    """Walk the trees of all ``spans``.

    ``logits``: float32 ``[R, vocab]``, for each span the row of its last token followed by those of its tree
    nodes. Costs one draw and one device-to-host copy per depth; all greedy spans without penalties or
    logprobs together cost one of each.
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
    """Take one drawn token; return whether it was drafted, in which case the walk continues."""
    if token_id == NO_TOKEN:
        # No token could be drawn after this node, so its own token becomes the bonus. When that token runs in
        # the next step, the draw after it fails again and the request ends with an error.
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
    """Map each row of the plain greedy spans to its token: one pass over the logits and one copy."""
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
    """Return the likeliest token of each row, ``NO_TOKEN`` if its logit is not finite; NaN counts as largest.

    On a CPU numpy is faster: 0.3 ms for 8 rows of 49,152, against torch's 1.1 ms with one thread or two.
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
    """Draw one token for each of ``rows``; append requested logprobs to the walks."""
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
    """Return the sampling input of the next draw, whose context includes ``path_ids``, this step's tokens."""
    forbidden = sequence.stop_token_ids if sequence.must_not_stop(len(path_ids)) else frozenset[int]()
    allowed = None
    if sequence.grammar is not None:
        allowed = sequence.grammar.mask(path_ids)
        if forbidden and not sequence.grammar.allows_besides(allowed, forbidden):
            forbidden = frozenset()  # the grammar is complete: the answer may end before ``min_tokens``
    own = sequence.sampling, sequence.token_ids, sequence.num_prompt_tokens
    return DrawRow(*own, forbidden, allowed, path_ids)
