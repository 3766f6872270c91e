"""Compares attention kernels with plain torch on the device in use, over random spans, trees and pages."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from engine.attention import attend, prepare
from engine.batch import Part, build_batch
from engine.kernels.spans import AttentionKernels
from engine.kv_cache import KVCache, KVShape

_PAGE_SIZE = 16

CLOSE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""The largest difference that rounding may cause, relative to a row's largest absolute value."""


@dataclass(frozen=True, slots=True)
class Spans:
    """The sequences of a step: how many tokens are in KV, how many run, and whether those form a tree."""

    prefixes: Seq[int]
    queries: Seq[int]
    trees: Seq[bool]


SOME = Spans(
    prefixes=(37, 300, 0, 5, 700), queries=(9, 1, 70, 64, 3), trees=(True, False, False, True, False)
)
"""Trees, one of them with all 64 nodes, a prompt chunk, decoding, and contexts that are worth splitting."""


SCENES = (
    SOME,
    Spans(prefixes=(5, 9), queries=(1, 1), trees=(False, False)),
    Spans(prefixes=(1500,), queries=(1,), trees=(False,)),
    Spans(prefixes=(1500,), queries=(30,), trees=(True,)),
)
"""Few and many rows, short and long contexts: each may be compiled separately."""


def worst_difference(
    kernels: AttentionKernels | None,
    shape: KVShape,
    num_heads: int,
    device: torch.device,
    *,
    window: int | None = None,
) -> float:
    """Return the largest :func:`difference` over all scenes; NaN if any of them is NaN."""
    found = [difference(kernels, shape, num_heads, device, spans=spans, window=window) for spans in SCENES]
    return float(np.max(found))


@torch.inference_mode()
def difference(
    kernels: AttentionKernels | None,
    shape: KVShape,
    num_heads: int,
    device: torch.device,
    *,
    spans: Spans = SOME,
    window: int | None = None,
    seed: int = 0,
) -> float:
    """Return the largest relative difference between ``kernels`` and plain torch on a CPU in float64.

    ``kernels`` (``None``: plain torch) run on ``device`` in the dtype of ``shape``. Differences are relative
    to the row's largest absolute value; NaN if either result has a NaN.
    """
    exact = KVShape(1, shape.num_kv_heads, shape.head_dim, torch.float64)
    own = KVShape(1, shape.num_kv_heads, shape.head_dim, shape.dtype)
    parts, num_pages = _parts(spans, np.random.default_rng(seed))
    num_rows = sum(spans.queries)
    # Use the same rounded inputs for both.
    query, keys, values = _numbers(own, num_heads, num_rows, num_pages, seed)
    outs = []
    for kind, where, chosen in ((own, device, kernels), (exact, torch.device("cpu"), None)):
        cache = KVCache(kind, num_pages, _PAGE_SIZE, where, chosen)
        cache.keys[0][: cache.num_slots] = keys
        cache.values[0][: cache.num_slots] = values
        context = prepare(build_batch(parts, _PAGE_SIZE, where), cache)
        out = attend(context, 0, query.to(where, kind.dtype), None, window)
        outs.append(out.to("cpu", torch.float64))
    # Relative to each row: over a long context values average out, and an error would be small compared to
    # other rows.
    return float(((outs[0] - outs[1]).abs().amax((1, 2)) / outs[1].abs().amax((1, 2))).max())


def _parts(spans: Spans, rng: np.random.Generator) -> tuple[list[Part], int]:
    """Return ``spans`` as parts of a row over shuffled pages, and the number of pages."""
    lengths = [p + q for p, q in zip(spans.prefixes, spans.queries, strict=True)]
    counts = [-(-n // _PAGE_SIZE) for n in lengths]
    pages = np.split(rng.permutation(sum(counts)), np.cumsum(counts)[:-1])
    parts = []
    for table, prefix, count, is_tree in zip(pages, spans.prefixes, spans.queries, spans.trees, strict=True):
        masks = _tree(count, rng) if is_tree else None
        order = np.arange(prefix, prefix + count)
        parts.append(Part(np.zeros(count, np.int64), order, table.tolist(), prefix, prefix, masks))
    return parts, sum(counts)


def _tree(num_nodes: int, rng: np.random.Generator) -> np.ndarray:
    masks = np.zeros(num_nodes, np.uint64)
    for node in range(num_nodes):
        above = masks[rng.integers(node)] if node else np.uint64(0)
        masks[node] = above | np.uint64(1) << np.uint64(node)
    return masks


def _numbers(
    shape: KVShape, num_heads: int, num_rows: int, num_pages: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    slots = (num_pages * _PAGE_SIZE, shape.num_kv_heads, shape.head_dim)
    sizes = ((num_rows, num_heads, shape.head_dim), slots, slots)
    query, keys, values = (torch.randn(size, generator=generator).to(shape.dtype) for size in sizes)
    return query, keys, values
