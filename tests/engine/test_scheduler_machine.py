"""Random add / step / draft / abort over the scheduler, with a model of what every KV slot must hold.

No tensors: "running" a span writes, for each token and each node of its tree, a fingerprint of the whole path
that its KV depends on; what is accepted is then moved to where dense tokens lie. Before a span runs, every
earlier slot of the sequence must hold the right fingerprint, whoever wrote it. The draft's slots likewise.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.config import NO_SPECULATION, TreeLimits
from engine.draft.candidates import DraftTree, pick
from engine.draft.pages import DraftPages
from engine.draft.slots import View
from engine.encoder_cache import EncoderCache
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.plan import Span, StepLimits
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from processing.prompt import ImageInput, Prompt
from tests.engine.draft_truth import TAGS, DraftWriter, num_kept
from tests.engine.trees import Nodes, candidates_of

EOS = 9
IMAGE_TOKEN = 8
LONGEST_PICTURE = 6
MAX_MODEL_LEN = 44
LIMITS = TreeLimits(num_steps=4, topk=3, num_draft_tokens=12)


def fingerprints(token_ids: Seq[int], images: Seq[ImageInput], salt: str) -> list[int]:
    """What the KV of each token depends on, one number a token."""
    owner = {
        position: (image.hash, position - image.start)
        for image in images
        for start, length in image.spans
        for position in range(start, start + length)
    }
    prints, state = [], hash(salt)
    for position, token in enumerate(token_ids):
        state = hash((state, token, owner.get(position)))
        prints.append(state)
    return prints


def random_tree(rng: random.Random) -> DraftTree | None:
    size = rng.choice([0, 0, 1, 3, 8, 12])
    nodes: Nodes = [(rng.choice([0, 1, 2, EOS]), rng.randint(-1, i - 1)) for i in range(size)]
    (tree,) = pick(candidates := candidates_of([nodes]), np.isfinite(candidates.scores))
    return tree


def line(tree: DraftTree, node: int) -> list[int]:
    """Nodes from a child of the root down to ``node``."""
    return [] if node < 0 else [*line(tree, int(tree.parents[node])), node]


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        page_size=st.sampled_from([1, 3, 4]),
        spare_pages=st.integers(0, 30),
        max_num_seqs=st.integers(1, 5),
        chunk=st.integers(5, 30),
        encoder_capacity=st.integers(6, 20),
        encoder_budget=st.integers(1, 12),
        caching=st.booleans(),
        draft_pages=st.sampled_from([0, 5, 60]),
        both_ways=st.booleans(),
    )
    def start(
        self,
        page_size: int,
        spare_pages: int,
        max_num_seqs: int,
        chunk: int,
        encoder_capacity: int,
        encoder_budget: int,
        caching: bool,
        draft_pages: int,
        both_ways: bool,
    ) -> None:
        self.page_size, self.both_ways = page_size, both_ways
        self.pool = PagePool(-(-MAX_MODEL_LEN // page_size) + spare_pages)
        self.encoder: EncoderCache[Any] = EncoderCache(encoder_capacity)
        block = LONGEST_PICTURE if both_ways else 0
        self.limits = StepLimits(max_num_seqs, max(chunk, max_num_seqs + block), encoder_budget, block)
        pages = DraftPages(PagePool(draft_pages), page_size, num_kept=num_kept) if draft_pages else None
        self.draft = None if pages is None else DraftWriter(pages, caching=caching)
        self.scheduler = Scheduler(self.limits, self.pool, self.encoder, caching=caching, draft_pages=pages)
        self.kv: dict[int, int] = {}
        self.open: dict[str, Sequence] = {}
        self.count = 0

    @rule(
        known=st.integers(0, 20),  # words that other prompts begin with, too
        words=st.lists(st.integers(0, 2), min_size=1, max_size=6),
        pictures=st.lists(
            st.tuples(
                *(st.integers(0, 20), st.integers(0, 2), st.integers(1, LONGEST_PICTURE)),
                st.sampled_from([None, *TAGS]),
            ),
            max_size=2,
        ),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "x"]),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        speculates=st.booleans(),
    )
    def add(
        self,
        known: int,
        words: list[int],
        pictures: list[tuple[int, int, int, str | None]],
        max_tokens: int,
        salt: str,
        priority: int,
        speculates: bool,
    ) -> None:
        words = [i % 3 for i in range(known)] + words
        token_ids, images, tags = list(words), [], []
        for place, name, length, tag in sorted(pictures, key=lambda one: one[:3]):
            start = min(place, len(words)) + len(token_ids) - len(words)
            spans, own = [(start, length)], [IMAGE_TOKEN] * length
            if name == 2 and length > 2:  # text within
                spans, own = [(start, 1), (start + 2, length - 1)], [IMAGE_TOKEN, 0, *own[1:]]
            token_ids[start:start] = own
            images.append(ImageInput(hash=bytes([name, length]), spans=spans, tensors={}))
            tags.append(tag)
        request = GenerateRequest(
            request_id=str(self.count),
            prompt=Prompt(token_ids=token_ids, images=images),
            sampling=SamplingParams(max_tokens=max_tokens),
            cache_salt=salt,
            priority=priority,
        )
        sequence = Sequence.from_request(
            request,
            arrival=self.count,
            table=PageTable(self.pool, self.page_size),
            eos_token_ids=frozenset([EOS]),
            max_model_len=MAX_MODEL_LEN,
            limits=LIMITS if speculates else NO_SPECULATION,
            both_ways=self.both_ways,
            views=[
                View(image, image.hash + salt.encode(), (), tag)
                for image, tag in zip(images, tags, strict=True)
            ],
        )
        self.count += 1
        self.open[request.request_id] = sequence
        self.scheduler.add(sequence)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(seed=st.integers(0, 1 << 16))
    def step(self, seed: int) -> None:
        rng = random.Random(seed)
        for sequence in self.scheduler.running:
            if rng.random() < 0.7:
                self.look(sequence, rng)
        decoding = self.scheduler.growing
        wanted = [s.request_id for s in decoding if s.limits.num_steps]
        trees = {name: tree for name in wanted if (tree := random_tree(rng)) is not None}
        plan = self.scheduler.schedule(trees)
        assert plan.spans, "there is work, but the plan is empty"
        assert plan.num_tokens == sum(s.num_rows for s in plan.spans) <= self.limits.max_num_batched_tokens
        sizes = [image.num_tokens for image in plan.encode.values()]
        assert sum(sizes) <= self.limits.max_num_encoder_tokens or len(sizes) == 1
        planned = {span.sequence.request_id for span in plan.spans}
        for sequence in decoding:
            preempted = sequence in self.scheduler.waiting
            assert sequence.request_id in planned or preempted, "a decoding sequence was stalled"
        for key in plan.encode:
            self.encoder.put(key, "embeddings")
        for span in plan.spans:
            assert span.tree is None or span.tree is trees[span.sequence.request_id]
            self.execute(span)
        for span in plan.spans:
            self.commit(span, rng)

    def execute(self, span: Span) -> None:
        sequence = span.sequence
        prints = fingerprints(sequence.token_ids, sequence.images, sequence.salt)
        for i in range(span.start):
            assert self.kv.get(self.slot(sequence, i)) == prints[i], f"KV of token {i} is somebody else's"
        for start, end in sequence.blocks:
            assert not any(start < cut < end for cut in (span.start, span.end)), "a picture was cut"
        for key, _ in sequence.images_in(span.start, span.end):
            assert self.encoder.get(key) == "embeddings"
        for i in range(span.start, span.end):
            self.kv[self.slot(sequence, i)] = prints[i]
        for node in range(span.num_rows - span.length):
            assert span.tree is not None
            path = [*sequence.token_ids, *span.tree.token_ids[line(span.tree, node)].tolist()]
            state = fingerprints(path, sequence.images, sequence.salt)[-1]
            self.kv[self.slot(sequence, span.end + node)] = state

    def slot(self, sequence: Sequence, index: int) -> int:
        return sequence.table.pages[index // self.page_size] * self.page_size + index % self.page_size

    def commit(self, span: Span, rng: random.Random) -> None:
        """Accept a random path of the tree and one token more; the path's KV becomes dense."""
        sequence = span.sequence
        path, tokens = [], []
        if span.tree is not None and rng.random() < 0.8:
            path = line(span.tree, rng.randrange(len(span.tree)))
            tokens = span.tree.token_ids[path].tolist()
        moved = [self.kv[self.slot(sequence, span.end + node)] for node in path]
        for i, state in enumerate(moved):
            self.kv[self.slot(sequence, span.end + i)] = state
        if span.samples:
            tokens.append(rng.choice([0, 1, 2, 3, EOS]))
        left = sequence.max_tokens - sequence.num_output_tokens
        counts = tokens[: tokens.index(EOS) + 1 if EOS in tokens else None][:left]
        assert self.scheduler.commit(span, tokens, span.end + len(path)) == counts
        needed = 0 if sequence.finish_reason else -(-sequence.num_tokens // self.page_size)
        assert len(sequence.table.pages) <= needed, "pages of a tree were kept"
        if sequence.finish_reason is not None:
            del self.open[sequence.request_id]
            ended_by_stop = sequence.token_ids[-1] == EOS
            assert sequence.finish_reason == ("stop" if ended_by_stop else "length")
            assert sequence.num_output_tokens <= sequence.sampling.max_tokens
            assert sequence.num_tokens <= MAX_MODEL_LEN

    def look(self, sequence: Sequence, rng: random.Random) -> None:
        """The draft sees what it has not seen."""
        assert (sequence.draft is not None) is bool(self.draft is not None and sequence.limits.num_steps)
        if self.draft is not None and sequence.draft is not None:
            states = fingerprints(sequence.token_ids, sequence.images, sequence.salt)
            self.draft.look(sequence, states, rng, num_nodes=rng.randrange(10))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1 << 16))
    def abort(self, which: int) -> None:
        request_id = sorted(self.open)[which % len(self.open)]
        (sequence,) = self.scheduler.find([request_id])
        self.scheduler.finish(sequence, "abort")
        del self.open[request_id]
        assert self.scheduler.find([request_id]) == []

    @invariant()
    def whole(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        listed = {s.request_id for s in [*self.scheduler.waiting, *self.scheduler.running]}
        assert listed == set(self.open), "a request is lost, or ended twice"
        if not self.scheduler.running:
            for pool in (self.pool, *([] if self.draft is None else [self.draft.pages.pool])):
                assert pool.num_free + pool.num_cached == pool.num_pages

    def teardown(self) -> None:
        for _ in range(2000):
            if not hasattr(self, "scheduler") or not self.scheduler.has_work:
                break
            self.step(seed=1)
        else:
            raise AssertionError("requests never end")


EngineMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestEngineMachine = EngineMachine.TestCase


@pytest.mark.slow
class TestLongerRuns(EngineMachine.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=800, stateful_step_count=80, deadline=None)
