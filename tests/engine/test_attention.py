"""Paged attention, in torch and by our kernels, against the plain formula over random pages and trees."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention import paged_attention, prepare
from engine.batch import Batch
from engine.kernels.rows import CpuAttention
from engine.kernels.spans import AttentionKernels
from engine.kv_cache import KVCache, KVShape
from tests.engine.own_kernels import own_kernels

HEADS, KV_HEADS, DIM = 6, 2, 8


def ancestors(parents: list[int]) -> list[list[int]]:
    """Nodes that each node sees: itself and its ancestors. ``parents[i] < i``; a root has -1."""
    seen: list[list[int]] = []
    for node, parent in enumerate(parents):
        seen.append(([] if parent < 0 else seen[parent]) + [node])
    return seen


class Scene:
    """Random sequences in random pages, with their whole keys and values kept densely beside."""

    def __init__(
        self,
        seed: int,
        prefixes: list[int],
        queries: list[int],
        page_size: int,
        trees: list[bool],
        ran: list[int] | None = None,
        attention: AttentionKernels | None = None,
        sizes: tuple[int, int, int] = (HEADS, KV_HEADS, DIM),
    ) -> None:
        """``ran``: how many nodes of each tree are in KV from earlier steps; the rest run now."""
        self.heads, kv_heads, dim = sizes
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        ran = [0] * len(queries) if ran is None else ran
        starts = [p + r for p, r in zip(prefixes, ran, strict=True)]
        nodes = [q + r for q, r in zip(queries, ran, strict=True)]
        lengths = [p + n for p, n in zip(prefixes, nodes, strict=True)]
        counts = [-(-n // page_size) for n in lengths]
        pages = rng.permutation(sum(counts) + 3)
        tables = np.split(pages[: sum(counts)], np.cumsum(counts)[:-1])
        self.cache = KVCache(
            KVShape(1, kv_heads, dim, torch.float32), len(pages), page_size, torch.device("cpu"), attention
        )
        # Several roots, as a draft's tree has, whose own root is in the prefix.
        self.parents = [[int(rng.integers(-1, i)) for i in range(q)] for q in nodes]
        self.tree_starts = prefixes
        self.ends: dict[tuple[int, int], int] = {}  # (sequence, query): the query that it sees up to
        self.keys = [torch.randn(n, kv_heads, dim, generator=generator) for n in lengths]
        self.values = [torch.randn(n, kv_heads, dim, generator=generator) for n in lengths]
        # Slots that no sequence owns, or that are not written yet, may hold anything.
        for tensor in (self.cache.keys[0], self.cache.values[0]):
            tensor.fill_(float("nan"))
        self.query = torch.randn(sum(queries), self.heads, dim, generator=generator)
        slots = []
        for table, start, length, k, v in zip(tables, starts, lengths, self.keys, self.values, strict=True):
            own = torch.tensor([table[i // page_size] * page_size + i % page_size for i in range(length)])
            self.cache.keys[0][own[:start]] = k[:start]
            self.cache.values[0][own[:start]] = v[:start]
            slots.append(own[start:])
        width = max(counts)
        masks = [
            sum(1 << j for j in seen) if tree else 0
            for p, tree, r in zip(self.parents, trees, ran, strict=True)
            for seen in ancestors(p)[r:]
        ]
        self.batch = Batch(
            token_ids=torch.zeros(sum(queries), dtype=torch.int64),
            positions=torch.zeros(sum(queries), dtype=torch.int64),
            slots=torch.cat(slots),
            page_table=torch.from_numpy(np.stack([np.pad(t, (0, width - len(t))) for t in tables])),
            span_starts=(0, *np.cumsum(queries).tolist()),
            prefix_lens=tuple(starts),
            page_size=page_size,
            trees=tuple(trees),
            tree_starts=tuple(prefixes) if any(ran) else (),
            tree_masks=torch.tensor([m - (1 << 64) if m >> 63 else m for m in masks]),
        )

    def join(self, sequence: int, start: int, end: int) -> None:
        """Let these queries of a causal span see each other."""
        ends = self.batch.visible_ends
        if ends is None:
            lengths = [self.batch.query_len(s) for s in range(self.batch.num_sequences)]
            first = zip(self.batch.prefix_lens, lengths, strict=True)
            ends = torch.cat([torch.arange(p + 1, p + n + 1) for p, n in first])
        row = self.batch.span_starts[sequence]
        ends[row + start : row + end] = self.batch.prefix_lens[sequence] + end
        self.batch = replace(self.batch, visible_ends=ends)
        self.ends |= {(sequence, q): end for q in range(start, end)}

    def run(self, window: int | None) -> torch.Tensor:
        starts = self.batch.prefix_lens
        new_keys = torch.cat([k[p:] for k, p in zip(self.keys, starts, strict=True)])
        new_values = torch.cat([v[p:] for v, p in zip(self.values, starts, strict=True)])
        out, _ = paged_attention(
            SimpleNamespace(layer_idx=0),  # type: ignore[arg-type]
            self.query.transpose(0, 1)[None],
            new_keys.transpose(0, 1)[None],
            new_values.transpose(0, 1)[None],
            None,
            context=prepare(self.batch, self.cache),
            scaling=0.3,
            sliding_window=window,
        )
        return out[0]

    def expected(self, window: int | None) -> torch.Tensor:
        """Softmax attention, one query and head at a time, from the dense keys and values."""
        rows, row = torch.empty_like(self.query), 0
        for s, prefix in enumerate(self.tree_starts):
            seen = ancestors(self.parents[s]) if self.batch.is_tree(s) else None
            ran = self.batch.prefix_lens[s] - prefix
            for q in range(ran, ran + self.batch.query_len(s)):
                own = seen[q] if seen else list(range(self.ends.get((s, q), q + 1)))
                position = {prefix + node: prefix + depth for depth, node in enumerate(own)}
                position |= {i: i for i in range(prefix)}
                here = position[prefix + q]
                visible = [i for i, at in sorted(position.items()) if window is None or at > here - window]
                for head in range(self.heads):
                    kv_head = head // (self.heads // self.keys[s].shape[1])
                    scores = self.keys[s][visible, kv_head] @ self.query[row, head] * 0.3
                    rows[row, head] = torch.softmax(scores, -1) @ self.values[s][visible, kv_head]
                row += 1
        return rows


@pytest.fixture(scope="session", params=["torch", "kernels"])
def attention(request: pytest.FixtureRequest) -> AttentionKernels | None:
    return None if request.param == "torch" else CpuAttention(own_kernels())


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 17, 200]), st.integers(1, 9), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    page_size=st.sampled_from([1, 3, 16]),
    window=st.sampled_from([None, None, 1, 4]),
)
def test_equals_the_formula(
    attention: AttentionKernels | None,
    seed: int,
    spans: list[tuple[int, int, bool]],
    page_size: int,
    window: int | None,
) -> None:
    prefixes, queries, trees = [s[0] for s in spans], [s[1] for s in spans], [s[2] for s in spans]
    scene = Scene(seed, prefixes, queries, page_size, trees, attention=attention)
    torch.testing.assert_close(scene.run(window), scene.expected(window), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 17, 90]), st.integers(1, 9), st.integers(0, 40), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    page_size=st.sampled_from([1, 3, 16]),
)
def test_trees_whose_earlier_nodes_are_in_kv(
    attention: AttentionKernels | None, seed: int, spans: list[tuple[int, int, int, bool]], page_size: int
) -> None:
    """A draft grows a tree level by level: only the newest level's nodes run, all may see ancestors."""
    prefixes, queries, ran, trees = (list(column) for column in zip(*spans, strict=True))
    ran = [r if tree else 0 for r, tree in zip(ran, trees, strict=True)]
    scene = Scene(seed, prefixes, queries, page_size, trees, ran, attention)
    torch.testing.assert_close(scene.run(None), scene.expected(None), rtol=1e-4, atol=1e-5)


def test_all_64_nodes_of_a_tree_that_ran_in_two_parts(attention: AttentionKernels | None) -> None:
    scene = Scene(5, [9, 3], [8, 2], 4, [True, True], [56, 62], attention)
    torch.testing.assert_close(scene.run(None), scene.expected(None), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="sliding windows are not supported for a tree"):
        scene.run(4)
    with pytest.raises(ValueError, match="at most 64"):
        Scene(5, [9], [8], 4, [True], [57])


def test_a_tree_of_64_nodes_beside_a_long_prompt(attention: AttentionKernels | None) -> None:
    scene = Scene(7, [5, 90], [64, 150], 16, [True, False], attention=attention)  # bit 63 is the sign bit
    torch.testing.assert_close(scene.run(None), scene.expected(None), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at most 64"):
        Scene(7, [5], [65], 16, [True])


def test_one_long_context_does_not_pad_the_short_ones() -> None:
    scene = Scene(3, [40] * 7 + [3000], [1] * 8, 16, [False] * 8)
    groups = prepare(scene.batch, scene.cache).groups
    assert sum(len(group.kv_slots) for group in groups) < 1.6 * (7 * 41 + 3001)
    alike = Scene(3, [40, 44, 50, 41], [3, 3, 2, 3], 16, [False] * 4)
    assert len(prepare(alike.batch, alike.cache).groups) == 1


def test_refuses_what_it_would_have_to_ignore() -> None:
    scene = Scene(1, [2], [1], 4, [False])
    parts = [
        torch.zeros(1, HEADS, 1, DIM),
        torch.zeros(1, KV_HEADS, 1, DIM),
        torch.zeros(1, KV_HEADS, 1, DIM),
    ]
    context = prepare(scene.batch, scene.cache)
    layer: Any = SimpleNamespace(layer_idx=0)
    wrongs: tuple[dict[str, Any], ...] = (
        {"context": None},
        {"context": context, "softcap": 30.0},
        {"context": context, "s_aux": torch.zeros(HEADS)},
        {"context": context, "dropout": 0.1},
        {"context": context, "is_causal": False},
        {"context": context, "output_attentions": True},
    )
    for wrong in wrongs:
        with pytest.raises(RuntimeError, match="with unsupported arguments"):
            paged_attention(layer, parts[0], parts[1], parts[2], None, **wrong)
    with pytest.raises(RuntimeError, match="mask=True"):
        paged_attention(layer, parts[0], parts[1], parts[2], torch.zeros(1), context=context)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    spans=st.lists(
        st.tuples(st.sampled_from([0, 1, 5, 40]), st.integers(1, 12), st.integers(0, 11), st.integers(1, 12)),
        min_size=1,
        max_size=4,
    ),
    tree=st.booleans(),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 3, 8]),
)
def test_queries_of_a_picture_see_each_other(
    attention: AttentionKernels | None,
    seed: int,
    spans: list[tuple[int, int, int, int]],
    tree: bool,
    page_size: int,
    window: int | None,
) -> None:
    """In both directions, as far back as a window allows, beside others that do not and a tree."""
    prefixes, queries = [span[0] for span in spans], [span[1] for span in spans]
    trees = [False] * len(spans)
    if tree:
        prefixes, queries, trees = [*prefixes, 7], [*queries, 5], [*trees, True]
    scene = Scene(seed, prefixes, queries, page_size, trees, attention=attention)
    for s, (_, num_queries, start, length) in enumerate(spans):
        if start < num_queries:
            scene.join(s, start, min(start + length, num_queries))
    torch.testing.assert_close(scene.run(window), scene.expected(window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_a_picture_changes_nothing_beside_it(window: int | None) -> None:
    """Nor how it is rounded: a sampled answer would depend on the pictures of others."""
    prefixes, queries, trees = [200, 5, 40, 7, 3], [1, 12, 9, 5, 100], [False] * 3 + [True, False]
    scene = Scene(11, prefixes, queries, 16, trees, attention=CpuAttention(own_kernels()))
    alone = scene.run(window)
    scene.join(1, 2, 10)
    beside = scene.run(window)
    starts = scene.batch.span_starts
    assert not torch.equal(beside[starts[1] : starts[2]], alone[starts[1] : starts[2]])
    for s in (0, 2, 3):
        assert torch.equal(beside[starts[s] : starts[s + 1]], alone[starts[s] : starts[s + 1]])
    torch.testing.assert_close(beside, scene.expected(window), rtol=1e-4, atol=1e-5)
