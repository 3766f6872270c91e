"""What one step is: its limits, the spans of its row, and the plan that is made of them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.draft.candidates import DraftTree
from engine.sequence import Sequence
from processing.prompt import ImageInput


@dataclass(slots=True, frozen=True)
class Limits:
    """What one step and the running set may hold. Every running sequence must fit one step with one token,
    and beside them ``longest_block``: the most tokens that must run together.
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
        """How many rows prompts may fill beside the trees of so many sequences. These keep a quarter of what
        is free: a prompt takes a third longer at most, and no queue of prompts ends speculation.
        """
        free = self.max_num_batched_tokens - num_growing
        return num_growing + max(free - free // 4, self.longest_block)


@dataclass(slots=True, frozen=True)
class Span:
    """Tokens ``start .. start + length`` of one sequence, run in this step, and the ``tree`` drafted after
    them. A tree comes only after a single token, its root.
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
        """Whether the last of the tokens decides a new one."""
        return self.end == self.sequence.num_tokens


@dataclass(slots=True)
class StepPlan:
    """One step: spans in row order, pictures to encode before (key, picture), rows with those of trees."""

    spans: list[Span] = field(default_factory=list)
    encode: dict[bytes, ImageInput] = field(default_factory=dict)
    num_tokens: int = 0
    num_encoder_tokens: int = 0
