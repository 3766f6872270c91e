"""Data types that describe one step: its limits, its spans and the plan made of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.draft.candidates import DraftTree
from engine.sequence import Sequence
from processing.prompt import ImageInput


@dataclass(slots=True, frozen=True)
class StepLimits:
    """Upper limits of one step and of the set of running sequences.

    One token of every running sequence must fit in a step, together with ``longest_block``: the largest
    number of tokens that must run in the same step.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_encoder_tokens: int
    longest_block: int = 0

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ValueError(f"max_num_seqs is {self.max_num_seqs}; it must be at least 1")
        if self.max_num_seqs > self.max_num_batched_tokens - self.longest_block:
            also = f" and the {self.longest_block} tokens of a picture" if self.longest_block else ""
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least "
                f"max_num_seqs ({self.max_num_seqs}){also}, which run together"
            )

    def before_trees(self, num_growing: int) -> int:
        """The row limit before trees are added, with ``num_growing`` sequences that run one token each.

        A quarter of the free rows is kept for trees. A prompt thus takes at most a third longer, and a queue
        of prompts cannot stop speculation.
        """
        free = self.max_num_batched_tokens - num_growing
        return num_growing + max(free - free // 4, self.longest_block)


@dataclass(slots=True, frozen=True)
class Span:
    """Tokens ``start .. start + length`` of one sequence, run in this step, and the tree drafted after them.

    Only a span of a single token, the root of the tree, can have a ``tree``.
    """

    sequence: Sequence
    start: int
    length: int
    tree: DraftTree | None = None

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def num_rows(self) -> int:
        return self.length + (len(self.tree) if self.tree is not None else 0)

    @property
    def samples(self) -> bool:
        """Whether a new token is sampled after the last token of the span."""
        return self.end == self.sequence.num_tokens


@dataclass(slots=True)
class StepPlan:
    """One step: its spans in row order and the pictures to encode first, by encoder cache key.

    ``num_tokens`` counts all rows, those of trees included.
    """

    spans: list[Span] = field(default_factory=list)
    encode: dict[bytes, ImageInput] = field(default_factory=dict)
    num_tokens: int = 0
    num_encoder_tokens: int = 0
