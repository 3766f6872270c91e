"""Assigns dialogues to the rows of each step, as a function of (seed, step) alone. Needs no torch.

step  = ``batch_size`` dialogues in the epoch's order
row   = some of them one after the other, together at most ``row_length`` tokens (or one that is longer)
pass  = some rows, together at most ``tokens_per_pass`` tokens including padding (or one that is longer)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

Row = list[int]


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows of a forward pass. ``rows``: example numbers; ``first_row``: rows of the step before this pass."""

    rows: list[Row]
    first_row: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a run. ``lengths`` int64 ``[E]``, in tokens. An epoch's last batch may be smaller."""

    lengths: npt.NDArray[np.int64]
    batch_size: int
    row_length: int
    tokens_per_pass: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def steps(self, first: int, last: int) -> Iterator[list[Pass]]:
        """Yield the passes of steps ``first`` to ``last`` - 1, over all processes."""
        order: list[int] = []
        for step in range(first, last):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if not order or batch == 0:
                order = list(range(len(self.lengths)))
                Random(f"specvlm/order/{self.seed}/{epoch}").shuffle(order)
            examples = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            rows = pack(examples, self.lengths, self.row_length)
            yield cut_passes(rows, self.lengths, self.tokens_per_pass)


def pack(examples: Sequence[int], lengths: npt.NDArray[np.int64], row_length: int) -> list[Row]:
    """Pack examples into rows, first-fit decreasing; the longest rows come first."""
    rows: list[Row] = []
    sizes: list[int] = []
    for example in sorted(examples, key=lambda e: (-lengths[e], e)):
        length = int(lengths[example])
        place = next((i for i, size in enumerate(sizes) if size + length <= row_length), len(rows))
        if place == len(rows):
            rows.append([])
            sizes.append(0)
        rows[place].append(example)
        sizes[place] += length
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: -sizes[i])]


def cut_passes(rows: Sequence[Row], lengths: npt.NDArray[np.int64], tokens_per_pass: int) -> list[Pass]:
    """Cut rows into passes, in order. The rows of a pass are padded to its longest one, the first."""
    passes: list[Pass] = []
    width = 0
    for number, row in enumerate(rows):
        if not passes or (len(passes[-1].rows) + 1) * width > tokens_per_pass:
            passes.append(Pass([], number))
            width = int(lengths[row].sum())
        passes[-1].rows.append(row)
    return passes
