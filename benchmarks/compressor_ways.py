"""The rows of the compressors' table: every branch at every ratio, and the three ways to combine branches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from compressors.base import Compressor, Picture, TextOnly, Whole
from compressors.combine import Concat, Weighted
from compressors.elastic import Elastic, training_free
from compressors.gate import Gate
from compressors.prune import AttentionPrune
from engine.draft.files import OwnDraft
from training.compression import Choose, always, gated

WEIGHTLESS = ("prune", "prune_uniform", "prune_norm", "pool")
TEXT_TOKENS = 40
"""Text tokens of the prompt for which the FLOPs of the draft's prefill are counted."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to compress pictures.

    ``choose``: see :mod:`training.compression`. ``fixed``: the compressor, if all pictures have the same one.
    ``note``: what a reader must know to judge the figures.
    """

    choose: Choose
    fixed: Compressor | None = None
    note: str = ""


def ways_of(draft: OwnDraft, ratios: Sequence[float], *, knows_attention: bool) -> dict[str, Way]:
    """Return the ways to measure, by name; the first is ``none``, the baseline of all comparisons.

    ``knows_attention``: whether pictures have attention scores to prune by.
    """
    found: dict[str, Way] = {}
    names = [*WEIGHTLESS, AttentionPrune.name] if knows_attention else WEIGHTLESS
    for way in (Whole(), *_at_ratios(names, draft.compressor, ratios), TextOnly()):
        found[way.tag] = Way(always(way), way)
    if draft.compressor is not None:
        own = () if draft.compressor.config.mode != "select" else draft.compressor.ways
        found.update({way.tag: Way(always(way), way) for way in own if way.tag not in found})
        found.update(_combined(draft.compressor))
    return found


def _at_ratios(
    names: Sequence[str], compressor: Elastic | None, ratios: Sequence[float]
) -> Iterator[Compressor]:
    for name in names:
        for ratio in ratios:
            yield training_free(name, ratio)
    for way in compressor.ways if compressor else ():
        if way.name in ("conv", "resampler"):
            yield from (way.at(ratio) for ratio in ratios if ratio <= way.max_ratio)


def _combined(compressor: Elastic) -> dict[str, Way]:
    """Return the trained combination, and the other two built from its branches as far as it has them."""
    mode = compressor.config.mode
    found = {f"{mode} (trained)": Way(gated(compressor))}
    names = {way.name for way in compressor.ways}
    if mode != "weight" and "conv" in names:
        parts = [training_free("prune", 3), training_free("pool", 3), compressor.branch("conv").at(3)]
        even = Weighted(parts, torch.full((3,), 1 / 3))
        found["weight-3, even"] = Way(always(even), even, "equal weights, not trained together")
    if mode != "concat" and {"conv", "resampler"} <= names:
        two = compressor.branch("resampler").at(50)
        concat = Concat([training_free("pool", 20), compressor.branch("conv").at(3), two])
        found[concat.tag] = Way(always(concat), concat, "not trained together")
    return found


def costs(draft: OwnDraft, way: Way, pictures: Sequence[Picture], bytes_per_value: int) -> dict[str, Any]:
    """Return the costs of the draft's prefill of one prompt if all its ``pictures`` are compressed this way.

    FLOPs are counted during a run: those of matrix products, convolutions and attention only.
    """
    fixed = way.fixed
    if fixed is None:
        return {}
    module, config = draft.module, draft.module.config
    size = int(config.hidden_size)
    head = int(getattr(config, "head_dim", None) or size // config.num_attention_heads)
    inputs = torch.randn(
        sum(picture.num_tokens for picture in pictures), size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad(), FlopCounterMode(display=False) as compressing:
        found = fixed(inputs, pictures)
    kept = sum(len(one.values) for one in found)
    joined = torch.zeros(1, TEXT_TOKENS + kept, size)
    causal = torch.ones(joined.shape[1], joined.shape[1], dtype=torch.bool).tril()[None, None]
    with torch.no_grad(), FlopCounterMode(display=False) as drafting:
        module.run(joined, torch.arange(joined.shape[1])[None], causal)
    return {
        "draft_kv_bytes": kept * 2 * int(config.num_key_value_heads) * head * bytes_per_value,
        "compressor_flops": compressing.get_total_flops(),
        "draft_prefill_flops": drafting.get_total_flops(),
        "parameters": parameters(fixed),
    }


def parameters(module: torch.nn.Module) -> int:
    parts: list[torch.nn.Module] = [module, *getattr(module, "_parts", ())]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def sizes(draft: OwnDraft) -> dict[str, int]:
    """Count the parameters of the draft, its branches and its gate."""
    found = {"draft": parameters(draft.module)}
    for way in draft.compressor.ways if draft.compressor else ():
        found[way.name] = parameters(way)
    gate = draft.compressor.gate if draft.compressor else None
    return found | ({"gate": parameters(gate)} if isinstance(gate, Gate) else {})
