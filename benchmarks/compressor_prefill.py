"""Times the draft's prefill of a prompt, for each way to compress its pictures.

It does what the engine does for a new prompt, but without KV pages: join features and embeddings of all
tokens, let the gate choose if there is one, compress, and run the draft's layer over the remaining tokens.
The target is not included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.compressor_ways import Way
from compressors.combine import compress
from engine.draft.eagle import EagleDraft
from engine.draft.files import OwnDraft
from training.batches import Batch
from training.compression import place
from training.rows import Placed, shifted
from training.teacher import Seen, Teacher


@dataclass(frozen=True, slots=True)
class Prompt:
    """A dialogue alone in its batch. Its first ``length`` tokens are the prompt, with all its pictures."""

    batch: Batch
    seen: Seen
    placed: list[Placed]
    length: int


def prompt_of(batch: Batch, teacher: Teacher) -> Prompt:
    length = int(batch.predicts[0].nonzero()[0]) + 1  # the slot that predicts an answer's first token
    seen = teacher.see(batch)
    return Prompt(batch, seen, place(batch, seen.scores, teacher.grids), length)


@torch.no_grad()
def prefill(draft: EagleDraft, way: Way, prompt: Prompt) -> Tensor:
    """Compute the draft's states ``[1, kept, hidden]`` for the slots of a prompt."""
    seen, length = prompt.seen, prompt.length
    states = shifted(draft.fuse(seen.features[:, :length]), prompt.batch.dialogues[:, :length])
    joined = draft.join(states, seen.embeddings[:, :length])[0]
    ways = way.choose(prompt.batch, seen.features, prompt.placed)
    visual = prompt.batch.image_slots
    is_text = torch.ones(length, dtype=torch.bool).index_fill(0, visual, False)
    found = compress(joined[visual], [one.picture for one in prompt.placed], ways) if len(visual) else []
    kept = [one.slots[done.sources] for one, done in zip(prompt.placed, found, strict=True)]
    stands = torch.cat([is_text.nonzero().flatten(), *kept])
    order = stands.argsort(stable=True)
    slots = torch.cat([joined[is_text], *(done.values.to(joined.dtype) for done in found)])[order]
    causal = torch.ones(len(slots), len(slots), dtype=torch.bool).tril()[None, None]
    return draft.run(slots[None], seen.positions[..., stands[order]], causal)


@torch.no_grad()
def prefill_times(
    teacher: Teacher, draft: OwnDraft, batches: Iterable[Batch], ways: Mapping[str, Way], *, bf16: bool
) -> dict[str, float]:
    """Return the milliseconds that each way takes, as the median over dialogues.

    Each dialogue is run in all ways before the next one, in a rotating order, so that all ways are measured
    under the same conditions.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
        for number, batch in enumerate(batches):
            prompt = prompt_of(batch, teacher)
            if not number:
                for way in ways.values():
                    prefill(draft.module, way, prompt)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                started = time.perf_counter()
                prefill(draft.module, ways[name], prompt)
                seconds[name].append(time.perf_counter() - started)
    return {name: round(1000 * statistics.median(own), 3) for name, own in seconds.items()}
