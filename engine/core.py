"""The step loop's body: schedule, execute, accept, commit, emit. Knows no transport and no text."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence as Seq

import numpy as np
import torch

from engine.admission import Admission, Rejected
from engine.attention import prepare
from engine.batch import build_batch
from engine.config import EngineConfig
from engine.encoder_cache import EncoderCache
from engine.kv_cache import KVCache
from engine.messages import (
    EngineInfo,
    EngineStats,
    GenerateRequest,
    RejectCode,
    RequestError,
    RequestOutput,
    StepReport,
    TokenLogprobs,
)
from engine.pages import PagePool, PageTable
from engine.sampling import NO_TOKEN, Drawn, DrawRow, draw
from engine.scheduler import Scheduler, Span, StepPlan
from engine.sequence import Sequence
from engine.sizing import choose_sizes
from engine.target import TargetModel, read_eos_token_ids
from processing.prompt import ImageInput

log = logging.getLogger(__name__)


class EngineCore:
    """One model replica. Not thread-safe: one loop calls ``add``, ``abort`` and ``step``."""

    def __init__(self, config: EngineConfig, target: TargetModel, eos_token_ids: frozenset[int]) -> None:
        started = time.monotonic()
        sizes = choose_sizes(config, target.kv_shape, target.max_position, target.device)
        self._config = config
        self._target = target
        self._eos_token_ids = eos_token_ids
        self._pool = PagePool(sizes.num_pages)
        self._cache = KVCache(target.kv_shape, sizes.num_pages, config.page_size, target.device)
        self._embeddings: EncoderCache[torch.Tensor] = EncoderCache(config.encoder_cache_tokens)
        self.scheduler = Scheduler(
            sizes.limits, self._pool, self._embeddings, caching=config.enable_prefix_caching
        )
        self._admission = Admission(
            target.adapter, target.vocab_size, sizes.max_model_len, config.encoder_cache_tokens
        )
        self._arrivals = itertools.count()
        self._pending: list[RequestOutput] = []  # ends that no step has reported yet
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self.info = EngineInfo(
            model=config.model,
            family=target.family,
            dtype=str(target.dtype).removeprefix("torch."),
            device=str(target.device),
            vocab_size=target.vocab_size,
            max_model_len=sizes.max_model_len,
            max_images=None if target.adapter.image_token_id is not None else 0,
            num_pages=sizes.num_pages,
            page_size=config.page_size,
            load_seconds=target.load_seconds + time.monotonic() - started,
        )

    @classmethod
    def load(cls, config: EngineConfig) -> EngineCore:
        """Load the model. Raises ``ModelLoadError`` where it cannot be served."""
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        target = TargetModel.load(config)
        return cls(config, target, read_eos_token_ids(config))

    @property
    def has_work(self) -> bool:
        return bool(self._pending) or self.scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_cache_usage=self._pool.usage,
            num_preemptions=scheduler.num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_cache_queries=scheduler.prefix_queries,
            prefix_cache_hits=scheduler.prefix_hits,
            mm_cache_queries=scheduler.mm_queries,
            mm_cache_hits=scheduler.mm_hits,
        )

    def add(self, request: GenerateRequest) -> None:
        """Queue a request whose id is free. One that can never be served is refused in the next outputs."""
        try:
            self._admission.check(request)
        except Rejected as error:
            self._pending.append(_failure(request.request_id, error.code, str(error)))
            return
        sequence = Sequence.from_request(
            request,
            arrival=next(self._arrivals),
            table=PageTable(self._pool, self._config.page_size),
            eos_token_ids=self._eos_token_ids,
            max_model_len=self.info.max_model_len,
        )
        self.scheduler.add(sequence)

    def abort(self, request_ids: list[str]) -> None:
        """End these requests; their last output is in the next step's."""
        for sequence in self.scheduler.find(request_ids):
            self.scheduler.finish(sequence, "abort")
            self._pending.append(self._output(sequence, [], None))

    def step(self) -> StepReport:
        """Run one step. Raises only if the engine itself is broken."""
        plan = self.scheduler.schedule()
        self._encode(plan)
        outputs = self._execute(plan) if plan.spans else []
        outputs, self._pending = [*outputs, *self._pending], []
        if not self.scheduler.has_work:
            self._check_no_leak()
        return StepReport(outputs=outputs, stats=self.stats, num_tokens=plan.num_tokens)

    def check(self) -> None:
        """Assert the integrity of pages, tables and pins."""
        self.scheduler.check()

    def _encode(self, plan: StepPlan) -> None:
        """Encode the plan's pictures in one pass; if it fails, one by one, so that only the culprits end."""
        if not plan.encode:
            return
        encoded: Seq[torch.Tensor | None]
        try:
            encoded = self._target.encode_images(list(plan.encode.values()))
        except Exception:  # whatever a vision tower may raise, others go on
            log.exception("encoding %d pictures at once failed", len(plan.encode))
            encoded = [self._encode_alone(image) for image in plan.encode.values()]
        finite = iter(_all_finite([features for features in encoded if features is not None]))
        for key, features in zip(plan.encode, encoded, strict=True):
            if features is not None and next(finite):
                self._embeddings.put(key, features)
            else:
                self._fail_users(plan, key)

    def _encode_alone(self, image: ImageInput) -> torch.Tensor | None:
        try:
            return self._target.encode_images([image])[0]
        except Exception:
            log.exception("encoding a picture of %d tokens failed", image.num_tokens)
            return None

    def _fail_users(self, plan: StepPlan, key: bytes) -> None:
        """End every request that was to use this picture and take its span out of the step."""
        for sequence in [s for s in self.scheduler.running if key in s.pinned]:
            plan.spans = [span for span in plan.spans if span.sequence is not sequence]
            self._fail(sequence, "a picture could not be encoded")
        plan.num_tokens = sum(span.length for span in plan.spans)
        self._embeddings.drop(key)

    def _fail(self, sequence: Sequence, message: str) -> None:
        self.scheduler.finish(sequence, "error")
        self._pending.append(_failure(sequence.request_id, "internal_error", message))

    def _execute(self, plan: StepPlan) -> list[RequestOutput]:
        """Forward, draw, commit. One device-to-host copy."""
        batch = build_batch(plan.spans, self._config.page_size, self._target.device)
        hidden = self._target.forward(prepare(batch, self._cache), self._placements(plan.spans))
        drawing = [i for i, span in enumerate(plan.spans) if span.samples]
        drawn = None
        if drawing:
            last_rows = torch.tensor([batch.span_starts[i + 1] - 1 for i in drawing], device=hidden.device)
            logits = self._target.logits(hidden[last_rows])
            drawn = draw(logits, [_draw_row(plan.spans[i].sequence) for i in drawing])
        outputs = []
        row_of = {index: row for row, index in enumerate(drawing)}
        for i, span in enumerate(plan.spans):
            row = row_of.get(i)
            if row is None or drawn is None:
                self.scheduler.commit(span, [], span.end)
            elif drawn.token_ids[row] == NO_TOKEN:
                self._fail(span.sequence, "the model gave no usable probabilities")
            else:
                taken = self.scheduler.commit(span, [drawn.token_ids[row]], span.end)
                self._generation_tokens += len(taken)
                outputs.append(self._output(span.sequence, taken, _logprobs(span.sequence, drawn, row)))
        return outputs

    def _placements(self, spans: Seq[Span]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Rows of this step that are picture placeholders, and the embeddings that go there."""
        placements, first_row = [], 0
        for span in spans:
            for key, image in span.sequence.images_in(span.start, span.end):
                positions = np.concatenate([np.arange(s, s + length) for s, length in image.spans])
                chosen = np.flatnonzero((positions >= span.start) & (positions < span.end))
                if not len(chosen):
                    continue
                features = self._embeddings.get(key)
                rows = torch.from_numpy(positions[chosen] - span.start + first_row).to(features.device)
                placements.append((rows, features[int(chosen[0]) : int(chosen[-1]) + 1]))
            first_row += span.length
        return placements

    def _output(
        self, sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None
    ) -> RequestOutput:
        reason = sequence.finish_reason
        if reason is not None:
            self._prompt_tokens += sequence.num_prompt_tokens
        return RequestOutput(
            request_id=sequence.request_id,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=reason,
            stop_token_id=sequence.stop_token_id,
            num_cached_tokens=sequence.num_cached or 0,
            timings=sequence.timings() if reason is not None else None,
        )

    def _check_no_leak(self) -> None:
        """At any idle moment every page is free or cached; a leak is a bug worth stopping for."""
        if self._pool.num_available != self._pool.num_pages:
            raise RuntimeError(
                f"KV pages leaked: {self._pool.num_free} free + {self._pool.num_cached} cached "
                f"!= {self._pool.num_pages}"
            )


def _all_finite(tensors: Seq[torch.Tensor]) -> list[bool]:
    """Which tensors hold numbers only. One device-to-host copy for all of them."""
    if not tensors:
        return []
    verdicts: list[bool] = torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).tolist()
    return verdicts


def _draw_row(sequence: Sequence) -> DrawRow:
    forbidden = sequence.stop_token_ids if sequence.must_not_stop else frozenset[int]()
    return DrawRow(sequence.sampling, sequence.token_ids, sequence.num_prompt_tokens, forbidden)


def _logprobs(sequence: Sequence, drawn: Drawn, row: int) -> list[TokenLogprobs] | None:
    count = sequence.sampling.logprobs
    if count is None or drawn.logprobs is None or drawn.top_ids is None or drawn.top_logprobs is None:
        return None
    top_ids, top_values = drawn.top_ids[row, :count].tolist(), drawn.top_logprobs[row, :count].tolist()
    return [TokenLogprobs(logprob=float(drawn.logprobs[row]), top_ids=top_ids, top_logprobs=top_values)]


def _failure(request_id: str, code: RejectCode, message: str) -> RequestOutput:
    error = RequestError(code=code, message=message)
    return RequestOutput(request_id=request_id, token_ids=[], finish_reason="error", error=error)
