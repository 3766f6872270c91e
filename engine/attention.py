"""Attention over paged KV: a reference in plain torch, and dispatch to the engine's kernels where they apply.

It is registered with transformers under a name (``ATTENTION_NAME``) for the text model of a checkpoint, and
takes its state from the keyword ``context`` of the forward call. There is no global state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from engine.batch import Batch
from engine.kernels.spans import PlannedSpans
from engine.kv_cache import KVCache

ATTENTION_NAME = "specvlm_paged"

# Keywords that transformers passes to every attention function, with the values that have no effect here.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"is_causal": (None, True), "output_attentions": (None, False)}
_IGNORED = {"position_ids", "use_cache", "cache_position"}  # already given by the batch

# A group may waste this share of its query-key pairs on padding, plus this many pairs: they cost about as
# much as a separate call.
_WASTE_SHARE = 0.5
_WASTE_PAIRS = 1024


@dataclass(slots=True)
class _Group:
    """Sequences that attend together, padded to Q queries and L keys.

    ``rows`` int64 ``[S, Q]``: rows of the packed row, where padding repeats the first; ``valid`` bool
    ``[S, Q]`` or ``None`` if nothing is padded. ``kv_slots`` int64 ``[S * L]``. ``prefix`` int64 ``[S]``:
    number of keys before the span, or before the tree. ``dense``: every query sees every key unless a window
    cuts it off. ``tree_masks`` int64 ``[S, Q]`` or ``None``; ``whole_trees``: the span holds every node of
    its tree. ``visible_ends`` int64 ``[S, Q]``: the end of the keys that each query sees, or ``None`` if all
    end with the query's own. ``masks``: additive masks by sliding window, created lazily. ``gathered``:
    buffers for the keys and values of one layer at a time; fresh memory for each layer costs more than the
    attention.
    """

    rows: torch.Tensor
    valid: torch.Tensor | None
    kv_slots: torch.Tensor
    kv_len: int
    prefix: torch.Tensor
    dense: bool
    tree_masks: torch.Tensor | None
    whole_trees: bool
    visible_ends: torch.Tensor | None
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)
    gathered: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(slots=True)
class AttentionContext:
    """One step's batch with the KV it reads and writes, prepared once for all layers.

    ``planned``: the spans served by kernels, if any; ``groups``: all others.
    """

    batch: Batch
    cache: KVCache
    groups: list[_Group]
    planned: PlannedSpans | None


def prepare(batch: Batch, cache: KVCache) -> AttentionContext:
    """Group sequences of similar size, so that a layer costs a few padded calls instead of one per sequence.

    A group is padded to its longest context: without grouping by size, one long chat among many short ones
    would make all of them long. Trees and causal spans are grouped separately.
    """
    planned = None if cache.attention is None else cache.attention.plan(batch)
    served = () if planned is None else planned.sequences
    groups: list[list[int]] = []
    order = sorted(
        set(range(batch.num_sequences)).difference(served),
        key=lambda s: (batch.is_tree(s), batch.query_len(s), batch.kv_len(s)),
        reverse=True,
    )
    queries = keys = pairs = 0  # of the group being filled: longest span and context, and unpadded work
    for sequence in order:
        own = batch.query_len(sequence) * batch.kv_len(sequence)
        if groups and batch.is_tree(sequence) == batch.is_tree(groups[-1][0]):
            padded = (len(groups[-1]) + 1) * queries * max(keys, batch.kv_len(sequence))
            if padded <= (1 + _WASTE_SHARE) * (pairs + own) + _WASTE_PAIRS:
                groups[-1].append(sequence)
                keys, pairs = max(keys, batch.kv_len(sequence)), pairs + own
                continue
        groups.append([sequence])
        queries, keys, pairs = batch.query_len(sequence), batch.kv_len(sequence), own
    return AttentionContext(batch, cache, [_group(batch, sorted(members)) for members in groups], planned)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    context: AttentionContext | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **unknown: Any,
) -> tuple[torch.Tensor, None]:
    """Write this step's KV, attend, and return ``[1, N, heads, head_dim]``.

    ``query`` is ``[1, heads, N, head_dim]``; ``key`` and ``value`` ``[1, kv_heads, N, head_dim]``. Raises
    ``RuntimeError`` without a context and for arguments that it would have to ignore.
    """
    context = honoured(context, attention_mask, dropout, unknown)
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = context.cache.keys[layer], context.cache.values[layer]
    keys.index_copy_(0, context.batch.slots, key[0].transpose(0, 1))
    values.index_copy_(0, context.batch.slots, value[0].transpose(0, 1))
    return attend(context, layer, query[0].transpose(0, 1), scaling, sliding_window).unsqueeze(0), None


def honoured(
    context: AttentionContext | None,
    attention_mask: torch.Tensor | None,
    dropout: float,
    unknown: dict[str, Any],
) -> AttentionContext:
    """Return the context. Raises ``RuntimeError`` without one and for arguments that would be ignored."""
    unknown = {
        name: value
        for name, value in unknown.items()
        if value is not None and name not in _IGNORED and value not in _NEUTRAL.get(name, ())
    }
    if context is None or attention_mask is not None or dropout or unknown:
        raise RuntimeError(
            "paged attention was called without its context or with unsupported arguments: "
            f"context={context is not None}, mask={attention_mask is not None}, {dropout=}, {sorted(unknown)}"
        )
    return context


def attend(
    context: AttentionContext,
    layer: int,
    rows: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute the attention of this step's queries ``rows`` ``[N, heads, head_dim]``; same shape.

    This step's KV must already be in the cache.
    """
    keys, values = context.cache.keys[layer], context.cache.values[layer]
    if len(context.groups) == 1 and context.groups[0].valid is None and context.planned is None:
        # The group holds all rows, in order.
        out = _attend(context.groups[0], rows, keys, values, scaling, sliding_window)
        return out.reshape(rows.shape)
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if context.planned is not None:
        context.planned.attend(rows, keys, values, out, scaling, sliding_window)
    for group in context.groups:
        attended = _attend(group, rows, keys, values, scaling, sliding_window)
        target = group.rows if group.valid is None else group.rows[group.valid]
        source = attended.flatten(0, 1) if group.valid is None else attended[group.valid]
        out.index_copy_(0, target.flatten(), source)
    return out


def register() -> None:
    """Register the function with transformers. Calling it again has no effect."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)


def _attend(
    group: _Group,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Compute the attention of one group, ``[S, Q, heads, head_dim]``.

    Heads that share a KV head become additional queries of it, so keys and values are never repeated.
    """
    num_sequences, num_queries = group.rows.shape
    heads, dim = rows.shape[1:]
    kv_heads = keys.shape[1]
    share = heads // kv_heads
    query = rows[group.rows].reshape(num_sequences, num_queries, kv_heads, share, dim)
    query = query.permute(0, 2, 3, 1, 4).reshape(num_sequences, kv_heads, share * num_queries, dim)
    shape = (num_sequences, group.kv_len, kv_heads, dim)
    if group.gathered is None:
        room = (len(group.kv_slots), kv_heads, dim)
        group.gathered = keys.new_empty(room), values.new_empty(room)
    key = torch.index_select(keys, 0, group.kv_slots, out=group.gathered[0]).view(shape).transpose(1, 2)
    value = torch.index_select(values, 0, group.kv_slots, out=group.gathered[1]).view(shape).transpose(1, 2)
    mask = _mask(group, sliding_window, query.dtype, share)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    out = out.reshape(num_sequences, kv_heads, share, num_queries, dim).permute(0, 3, 1, 2, 4)
    return out.reshape(num_sequences, num_queries, heads, dim)


def _group(batch: Batch, sequences: list[int]) -> _Group:
    device = batch.slots.device
    starts = torch.tensor([batch.span_starts[s] for s in sequences], device=device)
    lengths = torch.tensor([batch.query_len(s) for s in sequences], device=device)
    num_queries = max(batch.query_len(s) for s in sequences)
    kv_len = max(batch.kv_len(s) for s in sequences)
    index = torch.arange(num_queries, device=device).expand(len(sequences), -1)
    padded = index >= lengths[:, None]
    rows = starts[:, None] + index.masked_fill(padded, 0)
    # Padding repeats the sequence's own last key under the mask: a slot of another sequence, or one that was
    # never written, could hold a NaN, and zero weight times NaN is NaN.
    own_len = torch.tensor([batch.kv_len(s) for s in sequences], device=device)
    logical = torch.minimum(torch.arange(kv_len, device=device), own_len[:, None] - 1)
    tables = batch.page_table[torch.tensor(sequences, device=device)]
    pages = tables.gather(1, logical // batch.page_size)
    is_tree = batch.is_tree(sequences[0])
    return _Group(
        rows=rows,
        valid=~padded if len({batch.query_len(s) for s in sequences}) > 1 else None,
        kv_slots=(pages * batch.page_size + logical % batch.page_size).flatten(),
        kv_len=kv_len,
        prefix=torch.tensor([batch.tree_start(s) for s in sequences], device=device),
        dense=not is_tree and num_queries == 1 and len({batch.kv_len(s) for s in sequences}) == 1,
        tree_masks=batch.tree_masks[rows] if is_tree and batch.tree_masks is not None else None,
        visible_ends=None if batch.visible_ends is None else batch.visible_ends[rows],
        whole_trees=all(batch.tree_start(s) == batch.prefix_lens[s] for s in sequences),
    )


def _mask(group: _Group, window: int | None, dtype: torch.dtype, share: int) -> torch.Tensor | None:
    """Return the additive mask ``[S, 1, share * Q, L]``, or ``None`` if every query sees every key."""
    if group.dense and (window is None or group.kv_len <= window):
        return None
    if window not in group.masks:
        visible = _visible(group, window).unsqueeze(1).repeat(1, 1, share, 1)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        group.masks[window] = mask.masked_fill_(~visible, float("-inf"))
    return group.masks[window]


def _visible(group: _Group, window: int | None) -> torch.Tensor:
    """Return which keys each query sees, bool ``[S, Q, L]``.

    Keys of the prefix come first, then those of the span: key ``prefix + j`` belongs to its row ``j``, in a
    tree to node ``j``. A node's logical position is its depth, so nodes of the same depth share it although
    their slots differ. Raises ``RuntimeError`` for a window over a tree with nodes that are already in KV,
    since their depths are not known here (only drafts have such trees, and their layers attend fully).
    """
    logical = torch.arange(group.kv_len, device=group.prefix.device)
    node = logical - group.prefix[:, None]  # [S, L]; negative in the prefix
    if group.tree_masks is None:
        order = torch.arange(group.rows.shape[1], device=group.prefix.device)
        query_position = group.prefix[:, None] + order  # [S, Q]
        key_position = logical.expand_as(node)  # [S, L]
        ends = query_position + 1 if group.visible_ends is None else group.visible_ends
        visible = key_position[:, None, :] < ends[:, :, None]
    else:
        bits = (
            group.tree_masks[:, :, None] >> torch.arange(64, device=group.prefix.device)
        ) & 1  # [S, Q, 64]
        depth = bits.sum(-1) - 1
        if window is not None and not group.whole_trees:
            raise RuntimeError("sliding windows are not supported for a tree that is partly in KV")
        own = node.clamp(0, group.rows.shape[1] - 1)
        query_position = group.prefix[:, None] + depth
        key_position = torch.where(node < 0, logical, group.prefix[:, None] + depth.gather(1, own))
        ancestor = bits.gather(2, node.clamp(0, 63)[:, None, :].expand(-1, bits.shape[1], -1)) == 1
        visible = (node < 0)[:, None, :] | (ancestor & (node < 64)[:, None, :])
    if window is not None:
        visible &= key_position[:, None, :] > query_position[:, :, None] - window
    return visible
