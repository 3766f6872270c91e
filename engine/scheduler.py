"""The scheduler: decides which tokens one step runs and which pictures it encodes. No torch.

A step is one packed row of at most ``max_num_batched_tokens`` tokens. Sequences that want one token go
first, so a long prompt or a picture never delays them by more than a step. The rest of the budget goes to
prompts, minus a share kept for draft trees, and then to the trees. Requests are served in order of priority,
then arrival. All pages of a prompt are reserved when it is admitted. A growing sequence that cannot get a
page preempts the last running sequence, which is recomputed later, mostly from the prefix cache.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from engine.draft.candidates import DraftTree
from engine.draft.pages import DraftPages
from engine.encoder_cache import EncoderCache
from engine.messages import FinishReason
from engine.pages import PagePool
from engine.plan import Span, StepLimits, StepPlan
from engine.sequence import Sequence
from processing.prompt import ImageInput


class Scheduler:
    """Owns the waiting and running sequences; each leaves exactly once, through ``commit`` or ``finish``.

    ``draft_pages``: the page pool of the draft, if there is a draft with a KV cache.
    """

    def __init__(
        self,
        limits: StepLimits,
        pool: PagePool,
        encoder_cache: EncoderCache[Any],
        *,
        caching: bool,
        draft_pages: DraftPages | None = None,
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.draft_pages = draft_pages
        self.encoder_cache = encoder_cache
        self.caching = caching
        self.waiting: list[Sequence] = []  # both sorted by ``order``
        self.running: list[Sequence] = []
        self.num_preemptions = self.prefix_queries = self.prefix_hits = 0
        self.mm_queries = self.mm_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=lambda s: s.order)

    def find(self, request_ids: Iterable[str]) -> list[Sequence]:
        """Return the unfinished sequences with these ids."""
        wanted = set(request_ids)
        return [s for s in [*self.running, *self.waiting] if s.request_id in wanted]

    @property
    def growing(self) -> list[Sequence]:
        """Running sequences that want exactly one token, in scheduling order: the candidates for a tree."""
        return [sequence for sequence in self.running if sequence.num_wanted == 1]

    @property
    def prompt_rows(self) -> int:
        """The approximate number of rows that prompts take in the next step if trees take their share."""
        wanted = sum(s.num_wanted for s in self.running if s.num_wanted > 1)
        places, waiting = self.limits.max_num_seqs - len(self.running), self.waiting
        if places and waiting and self._has_room(waiting[0], self._prefix_hits(waiting[0])):
            wanted += sum(s.num_wanted for s in waiting[:places])
        count = len(self.growing)
        return min(wanted, self.limits.before_trees(count) - count)

    def schedule(self, trees: Mapping[str, DraftTree] = MappingProxyType({})) -> StepPlan:
        """Plan the next step. The plan is empty only if there are no unfinished sequences.

        ``trees``: drafts for sequences in ``growing``, by request id. A tree that does not fit is dropped.
        """
        plan = StepPlan()
        self._plan_growing(plan)
        drafted = [(i, tree) for i, s in enumerate(plan.spans) if (tree := trees.get(s.sequence.request_id))]
        left = self.limits.max_num_batched_tokens - sum(len(tree) for _, tree in drafted)
        most = max(left, self.limits.before_trees(plan.num_tokens))
        for sequence in self.running:
            if sequence.num_wanted > 1:
                self._plan_chunk(plan, sequence, most)
        self._admit(plan, most)
        self._plan_trees(plan, drafted)
        return plan

    def commit(self, span: Span, token_ids: list[int], num_computed: int) -> list[int]:
        """Record a span that ran and the tokens accepted after it; return the tokens actually taken.

        ``num_computed``: the number of tokens, accepted ones included, whose KV is in place. Tokens are taken
        one by one, and whatever follows a stop token or the length limit is dropped before any page is
        published or freed. Pages are published only once a token has been drawn after them: a successful draw
        proves that their content is finite.
        """
        sequence = span.sequence
        assert sequence.num_computed == span.start, "a span was run twice, or not at all"
        taken = sequence.take(token_ids)
        ended = sequence.finish_reason is not None
        sequence.num_computed = min(num_computed, sequence.num_tokens - (0 if ended else 1))
        sequence.table.truncate(sequence.num_tokens)  # free the pages of rejected drafts
        if self.caching and token_ids:
            sequence.update_hashes()
            sequence.table.publish(sequence.hashes, sequence.num_computed)
        self._unpin(sequence, sequence.num_computed)
        if ended:
            self._leave(sequence)
        return taken

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence for an external reason: an abort or an error."""
        sequence.finish_reason = reason
        self._leave(sequence)

    def check_no_leak(self) -> None:
        """Raise ``RuntimeError`` if pages are held while there is no work.

        When idle, every page is free or cached. A leak is a bug serious enough to stop the engine.
        """
        pools = [self.pool] if self.draft_pages is None else [self.pool, self.draft_pages.pool]
        for pool in pools:
            if pool.num_available != pool.num_pages:
                raise RuntimeError(
                    f"KV pages leaked: {pool.num_free} free + {pool.num_cached} cached != {pool.num_pages}"
                )

    def check(self) -> None:
        """Assert that everything the scheduler owns is consistent. Cheap enough to run whenever idle."""
        sequences = [*self.waiting, *self.running]
        self.pool.check(s.table for s in sequences)
        if self.draft_pages is not None:
            self.draft_pages.check(s.draft for s in sequences if s.draft is not None)
        pins: dict[bytes, set[str]] = {}
        for sequence in sequences:
            for key in sequence.pinned:
                pins.setdefault(key, set()).add(sequence.request_id)
        self.encoder_cache.check(pins)
        held = [s for s in self.waiting if s.num_computed or s.table.pages or s.draft is not None]
        assert not held, "a waiting sequence holds KV"
        for sequence in self.running:
            assert 0 <= sequence.num_computed < sequence.num_tokens
            assert sequence.table.num_missing(sequence.num_computed) == 0
        assert len({s.request_id for s in sequences}) == len(sequences), "a request is listed twice"

    def _plan_growing(self, plan: StepPlan) -> None:
        """Plan one token for every growing sequence, in order; the last ones are preempted to free pages."""
        for sequence in self.growing:
            if sequence.num_wanted != 1 or not sequence.table.pages:  # preempted in the meantime
                continue
            while not sequence.table.can_reserve(sequence.num_tokens):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                sequence.table.reserve(sequence.num_tokens)
                self._plan_chunk(plan, sequence, self.limits.max_num_batched_tokens)

    def _plan_trees(self, plan: StepPlan, drafted: Iterable[tuple[int, DraftTree]]) -> None:
        """Attach trees to spans, given by index, while rows and pages last. Never preempts for a tree."""
        for i, tree in drafted:
            span = plan.spans[i]
            if plan.num_tokens + len(tree) > self.limits.max_num_batched_tokens:
                continue
            if span.sequence.table.can_reserve(span.end + len(tree)):
                span.sequence.table.reserve(span.end + len(tree))
                plan.spans[i] = Span(span.sequence, span.start, span.length, tree)
                plan.num_tokens += len(tree)

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, most: int) -> None:
        """Add as many wanted tokens as the encoder budget and a total of ``most`` rows allow."""
        start = sequence.num_computed
        length = min(sequence.num_wanted, most - plan.num_tokens)
        length = sequence.uncut(start + length) - start
        if length <= 0:
            return
        for key, image in sequence.images_in(start, start + length):
            if not self._provide_image(plan, sequence, key, image):
                length = max(0, image.start - start)
                break
        if length:
            plan.spans.append(Span(sequence, start, length))
            plan.num_tokens += length

    def _provide_image(self, plan: StepPlan, sequence: Sequence, key: bytes, image: ImageInput) -> bool:
        """Pin a picture's embeddings or plan to encode it; ``False`` if it must wait for a later step."""
        cache = self.encoder_cache
        if key in sequence.pinned:
            return True
        if key in cache:
            cache.pin(key, sequence.request_id)
            self.mm_hits += 1
        else:
            num_tokens = plan.num_encoder_tokens + image.num_encoded
            # A picture larger than the whole budget is encoded alone.
            if plan.encode and num_tokens > self.limits.max_num_encoder_tokens:
                return False
            if not cache.can_reserve(image.num_tokens):
                return False
            cache.reserve(key, image.num_tokens, sequence.request_id)
            plan.encode[key] = image
            plan.num_encoder_tokens = num_tokens
        sequence.pinned.add(key)
        self.mm_queries += 1
        return True

    def _admit(self, plan: StepPlan, most: int) -> None:
        """Start waiting sequences, in order, while there is room for their whole prompts."""
        if not self.waiting:
            return
        # Pages that a running prompt is about to fill. A sequence with the same prefix (another choice of the
        # same request, another user asking about the same picture) waits for them rather than recompute them.
        coming = (
            {h for s in self.running for h in s.hashes[s.table.num_published :]} if self.caching else set()
        )
        num_held = 0  # slots kept for sequences that wait for pages: later arrivals must not overtake them
        for sequence in list(self.waiting):
            if len(self.running) + num_held >= self.limits.max_num_seqs or plan.num_tokens >= most:
                break
            hits = self._prefix_hits(sequence)
            beyond = sequence.hashes[len(hits) : (sequence.num_tokens - 1) // sequence.table.page_size]
            if beyond and beyond[0] in coming and not sequence.scores_prompt:
                num_held += 1
                continue
            if not self._has_room(sequence, hits):
                break
            self._start(sequence, hits)
            coming.update(beyond)
            self._plan_chunk(plan, sequence, most)

    def _prefix_hits(self, sequence: Sequence) -> list[int]:
        """Return the cached pages of the prompt.

        They never cover the whole prompt, since its last token must run to give a distribution, and they
        never end inside a block, since a block must run in one step.
        """
        if not self.caching or sequence.scores_prompt:
            return []
        usable = (sequence.num_tokens - 1) // sequence.table.page_size
        hits, page_size = self.pool.lookup(sequence.hashes[:usable]), sequence.table.page_size
        while sequence.uncut(len(hits) * page_size) < len(hits) * page_size:
            hits.pop()
        return hits

    def _has_room(self, sequence: Sequence, hits: list[int]) -> bool:
        """Whether the prompt fits with one spare page per running sequence, to avoid an early preemption."""
        needed = sequence.table.num_missing(sequence.num_tokens) - len(hits) + self.pool.num_idle(hits)
        return needed + len(self.running) <= self.pool.num_available

    def _start(self, sequence: Sequence, hits: list[int]) -> None:
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=lambda s: s.order)
        sequence.table.adopt(hits)
        sequence.table.reserve(sequence.num_tokens)
        sequence.num_computed = len(hits) * sequence.table.page_size
        if self.draft_pages is not None and sequence.limits.num_steps:
            self.draft_pages.open(sequence)
        if sequence.scheduled_at is None:
            sequence.scheduled_at = time.monotonic()
            sequence.num_cached = sequence.num_computed
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += sequence.num_computed

    def _preempt(self, sequence: Sequence) -> None:
        """Free a sequence's pages and put it back in the queue; the KV of its tokens is recomputed later."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        self.add(sequence)
        self.num_preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Free all pages, including the draft's, and unpin all pictures."""
        self._unpin(sequence, sequence.num_tokens)
        sequence.table.release()
        if sequence.draft is not None:
            sequence.draft.release()
            sequence.draft = None

    def _unpin(self, sequence: Sequence, num_tokens: int) -> None:
        """Unpin the pictures that end within the first ``num_tokens`` tokens."""
        if not sequence.pinned:
            return
        for key, image in zip(sequence.image_keys, sequence.images, strict=True):
            if image.end <= num_tokens and key in sequence.pinned:
                self.encoder_cache.unpin(key, sequence.request_id)
                sequence.pinned.discard(key)
