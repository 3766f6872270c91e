"""Runs several draft steps from every position at once, for training and evaluation.

When serving, a round that starts at token ``t`` (the last known token) runs

    step 0   slot t       embedding of t       true feature of t - 1      drafts token t + 1
    step 1   slot t + 1   embedding of t + 1   state of step 0, slot t    drafts token t + 2
    step 2   slot t + 2   embedding of t + 2   state of step 1, slot t + 1   ...

and in step ``s`` the slot ``i = t + s`` attends to: slots up to ``t`` as step 0 wrote them (with true
features), slot ``t + 1`` as step 1 wrote it, ... and slot ``i`` as step ``s`` writes it now. Here all starts
``t`` run together: step ``s`` is one forward pass over all slots, where slot ``i`` represents the round that
started at ``t = i - s``, with the data's tokens in place of drafted ones (to which they are equal as long as
drafts are accepted). The keys of all steps are concatenated, and slot ``i`` of step ``s`` sees

    of step 0             slots j <= i - s
    of step r, 1 <= r <= s   slot i - s + r only

Example, N = 4, step 2 (x: seen; rows: slots i; columns: j of step 0, of step 1, of step 2):

    i=0   . . . .   . . . .   x . . .
    i=1   . . . .   x . . .   . x . .       slots with i < s represent no round; their output is not used
    i=2   x . . .   . x . .   . . x .
    i=3   x x . .   . . x .   . . . x

This is the training-time test of HASS (arXiv 2408.15766) and EAGLE-3 (arXiv 2503.01840).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.draft.eagle import EagleDraft
from training.rows import Rows, shifted


def step_mask(dialogues: Tensor, step: int) -> Tensor:
    """Return the attention mask of ``step``: bool ``[B, 1, N, (step + 1) * N]``.

    ``dialogues`` int64 ``[B, N]``: slots of different dialogues do not see each other.
    """
    slots = torch.arange(dialogues.shape[1], device=dialogues.device)
    behind = slots[:, None] - slots[None, :]
    seen = [behind >= step] + [behind == step - r for r in range(1, step + 1)]
    same = dialogues[:, :, None] == dialogues[:, None, :]
    mask = torch.cat([same & block for block in seen], dim=-1)
    if step:  # a slot without a round sees itself, or its softmax would divide by zero
        mask[:, slots, step * len(slots) + slots] = True
    return mask.unsqueeze(1)


def unrolled(draft: EagleDraft, rows: Rows, steps: int) -> Iterator[Tensor]:
    """Yield the states ``[B, N, hidden]`` of all slots in steps 0, 1, …

    The states of step ``s`` are meaningful where ``rows.rounds`` is at least ``s``.
    """
    cache = DynamicCache()
    joined = rows.joined
    for step in range(steps):
        mask = step_mask(rows.dialogues, step)
        states = draft.run(
            joined, rows.positions, mask, past_key_values=cache
        ).float()  # autocast gives bfloat16
        yield states
        if step + 1 < steps:
            joined = draft.join(shifted(states, rows.dialogues), rows.embeddings)
