"""Rounds of an imaginary draft that always knows all of a step but its last token."""

from __future__ import annotations

from collections.abc import Sequence

from engine.messages import SpeculationStats, TracedRound

WRONG = 0
"""A token id that the draft offers beside the right ones: the root's second child, never accepted."""


def drafted(step: Sequence[int]) -> TracedRound:
    """The round that gave ``step``: a chain of its tokens but the last, and one wrong node as node 0."""
    *accepted, bonus = step
    return TracedRound(
        token_ids=[WRONG, *accepted],
        parents=[-1, -1, *range(1, len(accepted))][: len(accepted) + 1],
        accepted=list(range(1, len(accepted) + 1)),
        bonus_token_id=bonus,
    )


def statistics(rounds: Sequence[TracedRound]) -> SpeculationStats:
    lengths = [len(one.accepted) for one in rounds]
    return SpeculationStats(
        num_spec_steps=len(rounds),
        num_draft_tokens=sum(len(one.token_ids) for one in rounds),
        num_accepted_draft_tokens=sum(lengths),
        num_spec_tokens=sum(lengths) + len(rounds),
        acceptance_histogram=[lengths.count(k) for k in range(max(lengths, default=-1) + 1)],
    )
