"""The data of one packed row, built once per step and passed explicitly to everything that runs.

Sequences are spans of the row. An example with two sequences, one that decodes after 5 cached tokens and one
that starts a prompt of 3:

    row              0    1    2    3
    span_starts     [0,   1,             4]
    positions        5    0    1    2        rotary positions (some model families have three per token)
    slots           21   32   33   34        where the token's KV goes: page * page_size + offset
    prefix_lens     [5,   0]                 tokens of the sequence that are in KV before this step
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.config import MAX_TREE_NODES
from engine.transfer import to_device


@dataclass(slots=True, frozen=True)
class Batch:
    """N rows of S sequences with page tables of at most P pages.

    ``token_ids``, ``slots``: int64 ``[N]``; ``positions``: int64 ``[N]`` or ``[3, N]``; ``page_table``: int64
    ``[S, P]``, padded with 0. ``span_starts`` (S + 1) and ``prefix_lens`` (S) stay on the host.

    ``trees``: which spans are rows of a draft tree, empty if none is; the others are causal. ``tree_starts``:
    the logical slot of each tree's node 0, which is the prefix length unless nodes of earlier steps are in
    KV. ``tree_masks``: int64 ``[N]`` or ``None``; bit ``j`` of a tree's row is set if the row sees node ``j``
    of its tree, itself included. A tree has at most 64 nodes.

    ``visible_ends``: int64 ``[N]`` or ``None``: for rows of causal spans, the end of the logical slots that
    they see, if some rows see later ones: those of pictures whose tokens attend in both directions.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    page_table: torch.Tensor
    span_starts: tuple[int, ...]
    prefix_lens: tuple[int, ...]
    page_size: int
    trees: tuple[bool, ...] = ()
    tree_starts: tuple[int, ...] = ()
    tree_masks: torch.Tensor | None = None
    visible_ends: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for sequence in range(self.num_sequences):
            num_nodes = self.kv_len(sequence) - self.tree_start(sequence)
            if self.is_tree(sequence) and (self.tree_masks is None or num_nodes > MAX_TREE_NODES):
                raise ValueError(f"a tree needs masks and at most {MAX_TREE_NODES} nodes, got {num_nodes}")

    @property
    def num_rows(self) -> int:
        return self.span_starts[-1]

    @property
    def num_sequences(self) -> int:
        return len(self.prefix_lens)

    def is_tree(self, sequence: int) -> bool:
        return bool(self.trees) and self.trees[sequence]

    def tree_start(self, sequence: int) -> int:
        """Return the logical slot of the tree's node 0; for a causal span the length of its prefix."""
        return (
            self.tree_starts[sequence]
            if self.is_tree(sequence) and self.tree_starts
            else self.prefix_lens[sequence]
        )

    def query_len(self, sequence: int) -> int:
        return self.span_starts[sequence + 1] - self.span_starts[sequence]

    def kv_len(self, sequence: int) -> int:
        """Return the number of tokens in KV after this step's have been written."""
        return self.prefix_lens[sequence] + self.query_len(sequence)


@dataclass(slots=True, frozen=True)
class Part:
    """The rows of one sequence, on the host: ``M`` tokens in ``pages`` from logical slot ``first`` on.

    ``positions`` int64 ``[M]`` or ``[3, M]``. ``masks`` uint64 ``[M]`` if the rows belong to a tree, whose
    node 0 is at slot ``tree_start``. ``visible_ends`` int64 ``[M]`` if some rows see later ones.
    """

    token_ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    pages: Seq[int]
    first: int
    tree_start: int = 0
    masks: npt.NDArray[np.uint64] | None = None
    visible_ends: npt.NDArray[np.int64] | None = None


def padded(tables: Seq[Seq[int]]) -> npt.NDArray[np.int64]:
    """Return the pages of S sequences as one table ``[S, P]``, padded with 0."""
    found = np.zeros((len(tables), max(map(len, tables))), dtype=np.int64)
    for row, pages in zip(found, tables, strict=True):
        row[: len(pages)] = pages
    return found


def build_batch(parts: Seq[Part], page_size: int, device: torch.device) -> Batch:
    """Build one row from ``parts``. Costs one copy to the device, and no loop over tokens."""
    page_table = padded([part.pages for part in parts])
    lengths = [len(part.token_ids) for part in parts]
    logical = [np.arange(part.first, part.first + n) for part, n in zip(parts, lengths, strict=True)]
    slots = np.concatenate(
        [
            pages[i // page_size] * page_size + i % page_size
            for pages, i in zip(page_table, logical, strict=True)
        ]
    )
    trees = tuple(part.masks is not None for part in parts)
    masks = None
    if any(trees):
        masks = np.concatenate(
            [
                np.zeros(n, np.uint64) if p.masks is None else p.masks
                for p, n in zip(parts, lengths, strict=True)
            ]
        ).view(np.int64)
    ends = None
    if any(part.visible_ends is not None for part in parts):
        ends = np.concatenate(
            [i + 1 if p.visible_ends is None else p.visible_ends for p, i in zip(parts, logical, strict=True)]
        )
    nothing = np.empty(0, dtype=np.int64)
    token_ids, positions, on_slots, on_table, own_masks, own_ends = to_device(
        [
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.positions for part in parts], axis=-1),
            slots,
            page_table,
            nothing if masks is None else masks,
            nothing if ends is None else ends,
        ],
        device,
    )
    return Batch(
        token_ids=token_ids,
        positions=positions,
        slots=on_slots,
        page_table=on_table,
        span_starts=(0, *np.cumsum(lengths).tolist()),
        prefix_lens=tuple(part.first for part in parts),
        page_size=page_size,
        trees=trees if masks is not None else (),
        tree_starts=tuple(part.tree_start for part in parts) if masks is not None else (),
        tree_masks=None if masks is None else own_masks,
        visible_ends=None if ends is None else own_ends,
    )
