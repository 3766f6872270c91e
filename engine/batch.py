"""What one packed row holds, as data. Built once a step, passed explicitly to everything that runs.

Sequences are spans of the row. With two sequences, one decoding after 5 cached tokens and one starting a
prompt of 3:

    row              0    1    2    3
    span_starts     [0,   1,             4]
    positions        5    0    1    2        rotary positions (a family may have three a token)
    slots           21   32   33   34        where the token's KV goes: page * page_size + offset
    prefix_lens     [5,   0]                 tokens of the sequence that are in KV before this step
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from engine.scheduler import Span


@dataclass(slots=True, frozen=True)
class Batch:
    """N rows of S sequences with page tables of at most P pages.

    ``token_ids``, ``slots``: int64 ``[N]``; ``positions``: int64 ``[N]`` or ``[3, N]``; ``page_table``: int64
    ``[S, P]``, padded with 0. ``span_starts`` (S + 1) and ``prefix_lens`` (S) stay on the host.

    ``trees``: which spans are draft trees, empty if none is; the others are causal. ``tree_masks``: int64
    ``[N]`` or ``None``; bit ``j`` of a tree's row says that it sees node ``j`` of its own span, itself
    included. A tree has at most 64 nodes.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    page_table: torch.Tensor
    span_starts: tuple[int, ...]
    prefix_lens: tuple[int, ...]
    page_size: int
    trees: tuple[bool, ...] = ()
    tree_masks: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for sequence in range(self.num_sequences):
            if self.is_tree(sequence) and (self.tree_masks is None or self.query_len(sequence) > 64):
                raise ValueError(f"a tree needs masks and at most 64 nodes, got {self.query_len(sequence)}")

    @property
    def num_rows(self) -> int:
        return self.span_starts[-1]

    @property
    def num_sequences(self) -> int:
        return len(self.prefix_lens)

    def is_tree(self, sequence: int) -> bool:
        return bool(self.trees) and self.trees[sequence]

    def query_len(self, sequence: int) -> int:
        return self.span_starts[sequence + 1] - self.span_starts[sequence]

    def kv_len(self, sequence: int) -> int:
        """Tokens in KV once this step's are written."""
        return self.prefix_lens[sequence] + self.query_len(sequence)


def build_batch(spans: Seq[Span], page_size: int, device: torch.device) -> Batch:
    """Describe ``spans`` as one causal row. Cost: one small copy a tensor, no loop over tokens."""
    tables = [np.asarray(span.sequence.table.pages, dtype=np.int64) for span in spans]
    page_table = np.zeros((len(spans), max(len(table) for table in tables)), dtype=np.int64)
    for row, table in zip(page_table, tables, strict=True):
        row[: len(table)] = table
    token_ids = np.concatenate(
        [np.asarray(s.sequence.token_ids[s.start : s.end], dtype=np.int64) for s in spans]
    )
    positions = np.concatenate([np.arange(s.start, s.end, dtype=np.int64) for s in spans])
    slots = np.concatenate(
        [
            table[np.arange(s.start, s.end) // page_size] * page_size + np.arange(s.start, s.end) % page_size
            for s, table in zip(spans, tables, strict=True)
        ]
    )
    return Batch(
        token_ids=torch.from_numpy(token_ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        slots=torch.from_numpy(slots).to(device),
        page_table=torch.from_numpy(page_table).to(device),
        span_starts=(0, *np.cumsum([s.length for s in spans]).tolist()),
        prefix_lens=tuple(s.start for s in spans),
        page_size=page_size,
    )
