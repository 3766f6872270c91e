"""Log-probabilities of prompt tokens, for requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from engine.messages import TokenLogprobs
from engine.plan import Span
from engine.sampling import to_host

_ROWS = 64
"""Rows whose logits are computed at once: 38 MB for 150,000 tokens, and as much again for their softmax."""


@torch.inference_mode()
def score_prompts(
    spans: Seq[Span],
    starts: Seq[int],
    hidden: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
) -> list[list[TokenLogprobs]]:
    """Return, for each span, the log-probabilities of the prompt tokens that follow its rows.

    Tokens that were scored before are left out. ``starts``: the spans' first rows in ``hidden``
    ``[N, hidden]``. Costs a pass of the head and a device-to-host copy for every 64 tokens, and nothing for
    requests that do not ask for them.
    """
    return [
        _score(span, hidden[first : first + span.length], logits_of) if span.sequence.scores_prompt else []
        for span, first in zip(spans, starts, strict=True)
    ]


def _score(
    span: Span, hidden: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]
) -> list[TokenLogprobs]:
    sequence = span.sequence
    count = sequence.sampling.prompt_logprobs
    assert count is not None
    # Row ``i`` of the prompt scores token ``i + 1``. After a preemption, rows run again that were scored.
    first = max(span.start, len(sequence.prompt_logprobs))
    end = min(span.end, sequence.num_prompt_tokens - 1)
    found: list[TokenLogprobs] = []
    for start in range(first, end, _ROWS):
        stop = min(start + _ROWS, end)
        tokens = torch.tensor(sequence.token_ids[start + 1 : stop + 1], device=hidden.device)
        told = to_host(tokens, logits_of(hidden[start - span.start : stop - span.start]), count)
        found += (told.logprobs_of(row, count) for row in range(stop - start))
    return found
