"""The state of one request inside the engine: its tokens, KV progress and stop conditions. No torch."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.config import NO_SPECULATION, TreeLimits
from engine.draft.kv import DraftKV
from engine.draft.slots import Block, SlotMap, View
from engine.grammar.grammar import GrammarState
from engine.hashing import extend_hashes, root_hash
from engine.messages import (
    FinishReason,
    GenerateRequest,
    RequestTimings,
    SamplingParams,
    ShownPicture,
    SpeculationStats,
    SpeculativeParams,
    TokenLogprobs,
)
from engine.mrope import Positions
from engine.pages import PageTable
from processing.prompt import ImageInput


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine.

    There are no prefill and decode phases: the computed tokens catch up with the known ones.
    Invariant while running: ``0 <= num_computed < num_tokens``, and the table holds the KV of the first
    ``num_computed`` tokens. ``order`` is (priority, arrival); lower goes first. ``image_keys``: the encoder
    cache key of each picture. ``limits``: limits of the draft trees, with the engine's already applied; all 0
    without speculation. ``views``: how a draft with a KV cache is to see each picture. ``draft``: set only
    while running, and only if such a draft serves the sequence; ``draft_slots``, its layout of the pictures,
    outlives it. ``prompt_positions``: rotary positions ``[3, num_prompt_tokens]`` of a model family with
    three axes; ``None`` if they are the token indices. ``blocks``: runs of placeholders (start, end) whose
    tokens attend to each other in both directions and therefore must run in one step. ``grammar``: constrains
    the output, if set. ``prompt_logprobs``: those of the prompt tokens from the second on, as far as they
    have been computed, if the request asked for them.
    """

    request_id: str
    token_ids: array[int]
    num_prompt_tokens: int
    images: list[ImageInput]
    image_keys: list[bytes]
    sampling: SamplingParams
    limits: TreeLimits
    trace: bool
    salt: str
    order: tuple[int, int]
    table: PageTable
    stop_token_ids: frozenset[int]
    max_tokens: int
    root: bytes
    prompt_positions: Positions | None = None
    blocks: tuple[tuple[int, int], ...] = ()
    grammar: GrammarState | None = None
    views: list[View] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int | None = None
    pinned: set[bytes] = field(default_factory=set)
    draft: DraftKV | None = None
    draft_slots: SlotMap | None = None
    num_rounds: int = 0
    num_drafted: int = 0
    num_round_tokens: int = 0
    acceptance: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    queued_at: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    first_token_at: float | None = None

    @classmethod
    def from_request(
        cls,
        request: GenerateRequest,
        *,
        arrival: int,
        table: PageTable,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        limits: TreeLimits,
        prompt_positions: Positions | None = None,
        both_ways: bool = False,
        grammar: GrammarState | None = None,
        views: list[View] | None = None,
    ) -> Sequence:
        """Build a sequence from a request that has passed validation (``engine.validation``).

        ``both_ways``: the tokens of a picture attend to each other in both directions.
        """
        sampling, prompt, root = request.sampling, request.prompt, root_hash(request.cache_salt)
        stops = frozenset(sampling.stop_token_ids)
        sequence = cls(
            request_id=request.request_id,
            token_ids=array("q", prompt.token_ids),
            num_prompt_tokens=len(prompt.token_ids),
            images=list(prompt.images),
            image_keys=[image.hash + root for image in prompt.images],
            sampling=sampling,
            limits=_limits(request.speculative, limits),
            trace=request.speculative.trace,
            salt=request.cache_salt,
            order=(request.priority, arrival),
            table=table,
            stop_token_ids=stops if sampling.ignore_eos else stops | eos_token_ids,
            max_tokens=min(sampling.max_tokens, max_model_len - len(prompt.token_ids)),
            root=root,
            prompt_positions=prompt_positions,
            blocks=tuple((s, s + n) for image in prompt.images for s, n in image.spans) if both_ways else (),
            grammar=grammar,
            views=views or [],
            queued_at=time.monotonic() if request.arrived_at is None else request.arrived_at,
        )
        sequence.update_hashes()
        return sequence

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_spared_tokens(self) -> int:
        """The number of visual tokens that lossy compression removed from the prompt."""
        return sum(image.num_encoded - image.num_tokens for image in self.images)

    @property
    def num_wanted(self) -> int:
        """The number of known tokens whose KV is missing."""
        return len(self.token_ids) - self.num_computed

    @property
    def scores_prompt(self) -> bool:
        """Whether prompt tokens must run for their log-probabilities, even if their KV is cached."""
        asked = self.sampling.prompt_logprobs is not None
        return asked and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    @property
    def can_draft(self) -> bool:
        """Whether only the KV of the last token is missing, so that a tree can be drafted after it."""
        return self.num_wanted == 1 and (not self.images or self.images[-1].end < self.num_tokens)

    @property
    def num_left(self) -> int:
        """The number of output tokens that the length limit still allows."""
        return self.max_tokens - self.num_output_tokens

    @property
    def draft_reach(self) -> int:
        """The end of the tokens that the draft can process now.

        The draft needs a token's own embedding and the feature of the token before it. The embedding of the
        newest token of a growing sequence is looked up; the next token of a prompt may belong to a picture.
        """
        assert self.draft is not None
        return self.draft.reach(self.num_computed + (1 if self.can_draft else 0))

    def tree_limits(self, num_steps: int, topk: int) -> TreeLimits:
        """The limits of this sequence's tree in a round of depth ``num_steps`` and width ``topk``.

        The last token that the length limit allows needs no draft.
        """
        return TreeLimits(
            num_steps=max(0, min(self.limits.num_steps, num_steps, self.num_left - 1)),
            topk=min(self.limits.topk, topk),
            num_draft_tokens=self.limits.num_draft_tokens,
        )

    def must_not_stop(self, ahead: int = 0) -> bool:
        """Whether ``min_tokens`` forbids a stop token ``ahead`` places after the next position."""
        return self.num_output_tokens + ahead < self.sampling.min_tokens

    def images_in(self, start: int, end: int) -> Iterator[tuple[bytes, ImageInput]]:
        """Yield the pictures with a placeholder in ``start .. end``, each with its encoder cache key."""
        if self.images and self.images[-1].end > start:  # most steps are past the last picture
            for key, image in zip(self.image_keys, self.images, strict=True):
                if image.end > start and image.start < end:
                    yield key, image

    def positions(self, start: int, end: int) -> Positions:
        """Return the rotary positions of tokens ``start .. end``: ``[N]``, or ``[3, N]`` with three axes.

        After the prompt they increase by one per token, also for tokens that are not known yet.
        """
        indices = np.arange(start, end, dtype=np.int64)
        if self.prompt_positions is None:
            return indices
        known = self.prompt_positions[:, start:end]
        # The last prompt token has the largest position, whether it is text or the far corner of a picture.
        next_position = int(self.prompt_positions[:, -1].max()) + 1
        later = indices[known.shape[1] :] - self.num_prompt_tokens + next_position
        return np.concatenate([known, np.broadcast_to(later, (3, len(later)))], axis=1)

    def uncut(self, end: int) -> int:
        """Return the largest index up to ``end`` that is not inside a block."""
        return next((start for start, stop in self.blocks if start < end < stop), end)

    def visible_ends(self, start: int, end: int) -> npt.NDArray[np.int64] | None:
        """Return the end of what each of the tokens ``start .. end`` attends to, int64.

        ``None`` if no token attends to a later one.
        """
        blocks = [block for block in self.blocks if block[0] < end and block[1] > start]
        if not blocks:
            return None
        ends = np.arange(start + 1, end + 1, dtype=np.int64)
        for first, stop in blocks:
            assert start <= first < stop <= end, "a block was cut"
            ends[first - start : stop - start] = stop
        return ends

    def update_hashes(self) -> None:
        extend_hashes(self.hashes, self.root, self.token_ids, self.images, self.table.page_size)

    def take(self, token_ids: list[int]) -> list[int]:
        """Append accepted tokens up to the one that ends the request; return those appended."""
        taken: list[int] = []
        if token_ids and not self.max_tokens:
            self.finish_reason = "length"
        while len(taken) < len(token_ids) and self.finish_reason is None:
            taken.append(token_ids[len(taken)])
            self._append(taken[-1])
        return taken

    def _append(self, token_id: int) -> None:
        assert self.finish_reason is None, "a finished request got a token"
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        may_stop = not self.must_not_stop()
        self.token_ids.append(token_id)
        if self.grammar is not None:
            self.grammar.consume(token_id)
            may_stop = may_stop or self.grammar.is_through
        if may_stop and token_id in self.stop_token_ids:
            self.finish_reason, self.stop_token_id = "stop", token_id
        elif self.num_output_tokens >= self.max_tokens:
            self.finish_reason = "length"

    def count_round(self, num_drafted: int, num_accepted: int, num_tokens: int) -> None:
        """Record a verified tree, of whose tokens ``num_tokens`` became output."""
        self.num_rounds += 1
        self.num_drafted += num_drafted
        self.num_round_tokens += num_tokens
        self.acceptance.extend([0] * (num_accepted + 1 - len(self.acceptance)))
        self.acceptance[num_accepted] += 1

    def speculation(self) -> SpeculationStats:
        return SpeculationStats(
            num_spec_steps=self.num_rounds,
            num_draft_tokens=self.num_drafted,
            num_accepted_draft_tokens=sum(count * rounds for count, rounds in enumerate(self.acceptance)),
            num_spec_tokens=self.num_round_tokens,
            acceptance_histogram=list(self.acceptance),
            visual_tokens=sum(image.num_tokens for image in self.images),
            pictures=[
                _shown(block, self.trace)
                for block in (self.draft_slots.blocks if self.draft_slots is not None else ())
            ],
        )

    def timings(self) -> RequestTimings:
        """Return the durations so far; a stage that was never reached counts as 0."""
        now = time.monotonic()
        scheduled = self.scheduled_at if self.scheduled_at is not None else now
        first = self.first_token_at if self.first_token_at is not None else now
        return RequestTimings(queue=scheduled - self.queued_at, prefill=first - scheduled, decode=now - first)


def _shown(block: Block, trace: bool) -> ShownPicture:
    return ShownPicture(
        compressor=block.tag,
        visual_tokens=block.num_kept,
        grids=list(block.view.grids) if trace else [],
        sources=block.sources.tolist() if trace and block.sources is not None else None,
    )


def _limits(asked: SpeculativeParams, limits: TreeLimits) -> TreeLimits:
    """Return the lower of the requested and the engine's limits; no speculation if any of them is 0."""
    parts = {}
    for name in ("num_steps", "topk", "num_draft_tokens"):
        wanted, most = getattr(asked, name), getattr(limits, name)
        parts[name] = most if wanted is None else min(wanted, most)
    return TreeLimits(**parts) if asked.enabled and all(parts.values()) else NO_SPECULATION
