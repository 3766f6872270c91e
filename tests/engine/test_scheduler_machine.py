"""Random add / step / abort / fail over the scheduler, with a model of what every KV slot must hold.

No tensors: "running" a span writes, for each token, a fingerprint of the whole prefix that its KV depends on.
Before a span runs, every earlier slot of the sequence must hold the right fingerprint, whoever wrote it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.config import NO_SPECULATION
from engine.encoder_cache import EncoderCache
from engine.messages import GenerateRequest, SamplingParams
from engine.pages import PagePool, PageTable
from engine.scheduler import Limits, Scheduler, Span
from engine.sequence import Sequence
from processing.prompt import ImageInput, Prompt

EOS = 9
IMAGE_TOKEN = 8
MAX_MODEL_LEN = 40


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


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        page_size=st.sampled_from([1, 3, 4]),
        spare_pages=st.integers(0, 30),
        max_num_seqs=st.integers(1, 5),
        chunk=st.integers(5, 30),
        encoder_capacity=st.integers(6, 20),
        encoder_budget=st.integers(1, 12),
        caching=st.booleans(),
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
    ) -> None:
        self.page_size = page_size
        self.pool = PagePool(-(-MAX_MODEL_LEN // page_size) + spare_pages)
        self.encoder: EncoderCache[Any] = EncoderCache(encoder_capacity)
        self.limits = Limits(max_num_seqs, chunk, encoder_budget)
        self.scheduler = Scheduler(self.limits, self.pool, self.encoder, caching=caching)
        self.kv: dict[int, int] = {}
        self.open: dict[str, Sequence] = {}
        self.count = 0

    @rule(
        words=st.lists(st.integers(0, 2), min_size=1, max_size=20),
        pictures=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.integers(1, 6)), max_size=2),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "x"]),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def add(
        self,
        words: list[int],
        pictures: list[tuple[int, int, int]],
        max_tokens: int,
        salt: str,
        priority: int,
    ) -> None:
        token_ids, images = list(words), []
        for place, name, length in sorted(pictures):
            start = min(place, len(words)) + len(token_ids) - len(words)
            token_ids[start:start] = [IMAGE_TOKEN] * length
            images.append(ImageInput(hash=bytes([name, length]), spans=[(start, length)], tensors={}))
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
            limits=NO_SPECULATION,
        )
        self.count += 1
        self.open[request.request_id] = sequence
        self.scheduler.add(sequence)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(seed=st.integers(0, 1 << 16))
    def step(self, seed: int) -> None:
        rng = random.Random(seed)
        decoding = [s for s in self.scheduler.running if s.num_wanted == 1]
        plan = self.scheduler.schedule()
        assert plan.spans, "there is work, but the plan is empty"
        assert plan.num_tokens == sum(s.length for s in plan.spans) <= self.limits.max_num_batched_tokens
        sizes = [image.num_tokens for image in plan.encode.values()]
        assert sum(sizes) <= self.limits.max_num_encoder_tokens or len(sizes) == 1
        planned = {span.sequence.request_id for span in plan.spans}
        for sequence in decoding:
            preempted = sequence in self.scheduler.waiting
            assert sequence.request_id in planned or preempted, "a decoding sequence was stalled"
        for key in plan.encode:
            self.encoder.put(key, "embeddings")
        for span in plan.spans:
            self.execute(span)
        for span in plan.spans:
            self.commit(span, [rng.choice([0, 1, 2, 3, EOS])] if span.samples else [])

    def execute(self, span: Span) -> None:
        sequence = span.sequence
        prints = fingerprints(sequence.token_ids, sequence.images, sequence.salt)
        slots = [
            sequence.table.pages[i // self.page_size] * self.page_size + i % self.page_size
            for i in range(span.end)
        ]
        for i in range(span.start):
            assert self.kv.get(slots[i]) == prints[i], f"KV of token {i} belongs to somebody else"
        for key, _ in sequence.images_in(span.start, span.end):
            assert self.encoder.get(key) == "embeddings"
        for i in range(span.start, span.end):
            self.kv[slots[i]] = prints[i]

    def commit(self, span: Span, tokens: list[int]) -> None:
        sequence = span.sequence
        assert self.scheduler.commit(span, tokens, span.end) == tokens
        if sequence.finish_reason is not None:
            del self.open[sequence.request_id]
            ended_by_stop = sequence.token_ids[-1] == EOS
            assert sequence.finish_reason == ("stop" if ended_by_stop else "length")
            assert sequence.num_output_tokens <= sequence.sampling.max_tokens
            assert sequence.num_tokens <= MAX_MODEL_LEN

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
            assert self.pool.num_free + self.pool.num_cached == self.pool.num_pages

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
