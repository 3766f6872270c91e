"""Log-probabilities of a prompt's own tokens, for the requests that ask for them."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch

from engine.messages import TokenLogprobs
from engine.plan import Span
from engine.sampling import to_host

_ROWS = 64
"""Whose logits are in memory together: of 150,000 words 38 MB, and as much again for their softmax."""


@torch.inference_mode()
def score_prompts(
    spans: Seq[Span],
    starts: Seq[int],
    hidden: torch.Tensor,
    logits_of: Callable[[torch.Tensor], torch.Tensor],
) -> list[list[TokenLogprobs]]:
    """For each span what the model gave to the prompt's tokens behind its rows, those left out that were
    known already. ``starts``: the spans' first rows in ``hidden`` ``[N, hidden]``. Costs a pass of the head
    and a device-to-host copy for every 64 tokens, nothing for requests that do not ask.
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
    # Row ``i`` of the prompt tells of token ``i + 1``. After a preemption rows are run that were told of.
    first = max(span.start, len(sequence.prompt_logprobs))
    end = min(span.end, sequence.num_prompt_tokens - 1)
    found: list[TokenLogprobs] = []
    for start in range(first, end, _ROWS):
        stop = min(start + _ROWS, end)
        tokens = torch.tensor(sequence.token_ids[start + 1 : stop + 1], device=hidden.device)
        told = to_host(tokens, logits_of(hidden[start - span.start : stop - span.start]), count)
        found += (told.logprobs_of(row, count) for row in range(stop - start))
    return found
