"""The engine core: one step drafts, schedules, encodes, executes, commits and emits.

It works on token ids only and knows nothing of transport or text.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from engine.adapters.base import Encoded
from engine.capturing import capture_steps
from engine.checkpoint import read_eos_token_ids, writable
from engine.config import CompressorName, EngineConfig
from engine.draft.choose import MakeDrafter, choose_drafter, no_drafter
from engine.encoder_cache import EncoderCache
from engine.grammar.grammar import GrammarCompiler, GrammarError, GrammarState
from engine.grammar.queue import GrammarQueue
from engine.grammar.tokenizer import load_grammar_tokenizer
from engine.host.cpus import set_num_threads, torch_threads
from engine.kv_cache import KVCache
from engine.memory import reserved_bytes
from engine.messages import (
    EngineInfo,
    EngineStats,
    GenerateRequest,
    RejectCode,
    RequestOutput,
    StepReport,
    TokenLogprobs,
    TracedRound,
)
from engine.pages import PagePool, PageTable
from engine.plan import Span, StepPlan
from engine.reports import failure, output_of, statistics
from engine.runner import Runner
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.sizing import choose_sizes
from engine.speculation.measure import MakeBudget, measured_budget
from engine.speculation.speculator import Speculator
from engine.target import TargetModel
from engine.validation import Rejected, RequestValidator
from engine.verify import Walk

log = logging.getLogger(__name__)


class EngineCore:
    """One model replica. Not thread-safe: one loop calls ``add``, ``abort`` and ``step``."""

    def __init__(
        self,
        config: EngineConfig,
        target: TargetModel,
        eos_token_ids: frozenset[int],
        make_drafter: MakeDrafter = no_drafter,
        make_budget: MakeBudget | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        """Set up the engine around a loaded ``target``.

        Without ``make_budget`` every tree is as large as the limits allow. Without ``grammars`` requests with
        a grammar are refused.
        """
        started = time.monotonic()
        sizes = choose_sizes(
            config,
            target.kv_shape,
            target.max_position,
            target.device,
            longest_block=target.adapter.longest_block,
            reserved=partial(reserved_bytes, config, target),
        )
        self._config = config
        self.target = target
        self._eos_token_ids = writable(eos_token_ids, target.vocab_size)
        self._pool = PagePool(sizes.num_pages)
        self._embeddings: EncoderCache[Encoded] = EncoderCache(config.encoder_cache_tokens)
        cache = KVCache(target.kv_shape, sizes.num_pages, config.page_size, target.device, target.attention)
        self._runner = Runner(target, cache, self._embeddings, config.page_size)
        drafter = make_drafter(config, target, sizes)
        capture_steps(config, target, cache, drafter, sizes)
        # With the CPU kernels, torch has too little left to do for more than one thread to pay. Parts that
        # profit from more threads set their own number.
        self._small_threads = target.num_threads if target.kernels is None else 1
        with torch_threads(self._small_threads):
            budget = make_budget(config, target, cache, drafter) if make_budget and drafter else None
        self._speculator = Speculator(drafter, config.speculative, budget)
        self.scheduler = Scheduler(
            sizes.limits,
            self._pool,
            self._embeddings,
            caching=config.enable_prefix_caching,
            draft_pages=None if drafter is None else drafter.pages,
        )
        self._branches = None if drafter is None else drafter.branches
        compressors: tuple[CompressorName, ...] = ("auto", "none")
        self._validator = RequestValidator(
            target.adapter,
            target.vocab_size,
            sizes.max_model_len,
            config.encoder_cache_tokens,
            compressors if self._branches is None else self._branches.names,
            config.target_visual_compression,
        )
        self._compiling = None if grammars is None else GrammarQueue(grammars)
        self._arrivals = itertools.count()
        self._pending: list[RequestOutput] = []  # final outputs not yet reported by a step
        self._prompt_tokens = self._generation_tokens = 0
        self._step_seconds = 0.0
        limits = self._speculator.limits
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
            draft="none" if drafter is None else drafter.kind,
            num_steps=limits.num_steps,
            topk=limits.topk,
            num_draft_tokens=limits.num_draft_tokens,
            compressors=self._validator.compressors,
            visual_compression=config.target_visual_compression,
        )

    @classmethod
    def load(cls, config: EngineConfig, make_drafter: MakeDrafter = choose_drafter) -> EngineCore:
        """Load the model. Raises ``ModelLoadError`` if it cannot be served."""
        set_num_threads(config.num_threads)
        eos_token_ids = read_eos_token_ids(config)
        grammars = GrammarCompiler(partial(load_grammar_tokenizer, config, eos_token_ids))
        target = TargetModel.load(config)
        return cls(config, target, eos_token_ids, make_drafter, measured_budget, grammars)

    @property
    def has_work(self) -> bool:
        return bool(self._pending or self._compiling) or self.scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        return statistics(
            self.scheduler,
            self._speculator,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            step_seconds=self._step_seconds,
        )

    def add(self, request: GenerateRequest) -> None:
        """Queue a request; its id must not be in use.

        A request that can never be served is refused in the outputs of the next step.
        """
        with self._ending_alone(request):
            self._take_in(self._validator.admit(request))

    @contextmanager
    def _ending_alone(self, request: GenerateRequest) -> Iterator[None]:
        """Refuse a request that cannot be queued. Whatever is odd about one request, the others go on."""
        try:
            yield
        except Rejected as error:
            self._pending.append(failure(request.request_id, error.code, str(error)))
        except Exception:
            log.exception("request %s could not be queued", request.request_id)
            message = "the engine could not queue this request"
            self._pending.append(failure(request.request_id, "internal_error", message))

    def _take_in(self, request: GenerateRequest) -> None:
        if request.sampling.grammar is None:
            self._queue(request)
        elif self._compiling is not None:
            self._compiling.put(request)
        else:
            message = "this engine was started without grammars"
            self._pending.append(failure(request.request_id, "invalid_grammar", message))

    def _queue(self, request: GenerateRequest, grammar: GrammarState | None = None) -> None:
        adapter = self.target.adapter
        sequence = Sequence.from_request(
            request,
            arrival=next(self._arrivals),
            table=PageTable(self._pool, self._config.page_size),
            eos_token_ids=self._eos_token_ids,
            max_model_len=self.info.max_model_len,
            limits=self._speculator.limits,
            prompt_positions=adapter.positions(request.prompt),
            both_ways=adapter.longest_block > 0,
            grammar=grammar,
            views=None if self._branches is None else self._branches.views(request, adapter),
        )
        self.scheduler.add(sequence)

    def abort(self, request_ids: list[str]) -> None:
        """Abort these requests; their final outputs come with the next step."""
        for sequence in self.scheduler.find(request_ids):
            self.scheduler.finish(sequence, "abort")
            self._pending.append(self._output(sequence, []))
        for request_id in self._compiling.remove(request_ids) if self._compiling is not None else ():
            self._pending.append(RequestOutput(request_id=request_id, token_ids=[], finish_reason="abort"))

    def step(self) -> StepReport:
        """Run one step. Raises only if the engine itself is broken."""
        with torch_threads(self._small_threads):
            return self._step()

    def _step(self) -> StepReport:
        self._queue_compiled()
        started = time.monotonic()
        trees = self._speculator.draft(self.scheduler)
        drafted = time.monotonic()
        plan = self.scheduler.schedule(trees)
        encoding = bool(plan.encode)
        self._encode(plan)
        sizes = _tree_sizes(plan)
        outputs, forward_seconds = self._execute(plan.spans) if plan.spans else ([], 0.0)
        outputs, self._pending = [*outputs, *self._pending], []
        if not self.scheduler.has_work:
            self.scheduler.check_no_leak()
        ended = time.monotonic()
        self._step_seconds += ended - started
        if sizes and len(sizes) == len(plan.spans) and not encoding and forward_seconds:
            self._speculator.learn_costs(
                plan.num_tokens, forward_seconds, ended - drafted - forward_seconds, speculating=any(sizes)
            )
        return StepReport(
            outputs=outputs,
            stats=self.stats,
            num_tokens=plan.num_tokens,
            tree_sizes=sizes if self.info.draft != "none" else [],
        )

    def check(self) -> None:
        """Assert that pages, page tables and encoder cache pins are consistent."""
        self.scheduler.check()

    def _queue_compiled(self) -> None:
        """Queue requests whose grammars have been compiled; refuse those whose grammars failed to compile."""
        if not self._compiling:
            return
        for request, grammar in self._compiling.take(idle=not (self._pending or self.scheduler.has_work)):
            if isinstance(grammar, GrammarState):
                with self._ending_alone(request):
                    self._queue(request, grammar)
            elif isinstance(grammar, GrammarError):
                message = f"the grammar cannot be used: {grammar}"
                self._pending.append(failure(request.request_id, "invalid_grammar", message))
            else:
                message = "the grammar could not be compiled"
                self._pending.append(failure(request.request_id, "internal_error", message))

    def _encode(self, plan: StepPlan) -> None:
        for key, (code, message) in self._runner.encode(plan.encode).items():
            self._fail_users(plan, key, code, message)

    def _fail_users(self, plan: StepPlan, key: bytes, code: RejectCode, message: str) -> None:
        """Fail every running request that needs this picture and remove its span from the step."""
        for sequence in [s for s in self.scheduler.running if key in s.pinned]:
            plan.spans = [span for span in plan.spans if span.sequence is not sequence]
            self._fail(sequence, message, code)
        plan.num_tokens = sum(span.num_rows for span in plan.spans)
        self._embeddings.drop(key)

    def _fail_draw(self, sequence: Sequence) -> None:
        """Fail a sequence for which no token could be drawn."""
        if sequence.grammar is not None and sequence.grammar.error is not None:
            self._fail(sequence, f"the grammar cannot continue: {sequence.grammar.error}", "invalid_grammar")
        else:
            self._fail(sequence, "the model returned no usable probabilities")

    def _fail(self, sequence: Sequence, message: str, code: RejectCode = "internal_error") -> None:
        self.scheduler.finish(sequence, "error")
        self._speculator.forget(sequence)
        self._pending.append(failure(sequence.request_id, code, message))

    def _execute(self, spans: list[Span]) -> tuple[list[RequestOutput], float]:
        """Run the forward pass, walk the trees and commit.

        Returns the outputs and the seconds that forward and walk took; 0 if the step had to be split, since
        the time then says nothing about its cost.
        """
        outputs: list[RequestOutput] = []
        seconds = 0.0
        for part, outcome in self._runner.run_parts(spans):
            if outcome is None:
                self._fail(part[0].sequence, "there is not enough memory for this request", "out_of_memory")
                continue
            seconds = outcome.seconds if len(part) == len(spans) else 0.0
            self._speculator.keep(part, outcome)
            for span, walked, prompt_logprobs in zip(
                part, outcome.walks, outcome.prompt_logprobs, strict=True
            ):
                span.sequence.prompt_logprobs += prompt_logprobs
                if walked is None:
                    self.scheduler.commit(span, [], span.end)
                elif not walked.token_ids:
                    self._fail_draw(span.sequence)
                else:
                    outputs.append(self._commit(span, walked))
        return outputs, seconds

    def _commit(self, span: Span, walked: Walk) -> RequestOutput:
        taken = self.scheduler.commit(span, walked.token_ids, span.end + len(walked.path))
        self._generation_tokens += len(taken)
        rounds = None
        if span.tree is not None:
            traced = self._speculator.count(span, walked, len(taken))
            rounds = [traced] if span.sequence.trace else None
        logprobs = None if walked.logprobs is None else walked.logprobs[: len(taken)]
        sequence, prompt_logprobs = span.sequence, None
        if sequence.num_output_tokens == len(taken):  # the first output: the prompt has been processed
            self._prompt_tokens += sequence.num_prompt_tokens
            if sequence.sampling.prompt_logprobs is not None:
                prompt_logprobs = sequence.prompt_logprobs
        return self._output(sequence, taken, logprobs, rounds, prompt_logprobs)

    def _output(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprobs] | None = None,
        rounds: list[TracedRound] | None = None,
        prompt_logprobs: list[TokenLogprobs] | None = None,
    ) -> RequestOutput:
        if sequence.finish_reason is not None:
            self._speculator.forget(sequence)
        return output_of(sequence, token_ids, logprobs, rounds, prompt_logprobs)


def _tree_sizes(plan: StepPlan) -> list[int]:
    """Return the number of drafts to verify for each sequence that wants one token; 0 is plain decoding.

    Must be called before the step is committed, because a span's role is read off its sequence.
    """
    return [span.num_rows - 1 for span in plan.spans if span.samples and span.length == 1]
