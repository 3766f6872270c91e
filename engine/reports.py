"""Builds what the core reports: request outputs and engine statistics."""

from __future__ import annotations

from engine.draft.pages import PictureCounts
from engine.messages import (
    EngineStats,
    RejectCode,
    RequestError,
    RequestOutput,
    TokenLogprobs,
    TracedRound,
)
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.speculation.speculator import Speculator


def output_of(
    sequence: Sequence,
    token_ids: list[int],
    logprobs: list[TokenLogprobs] | None = None,
    rounds: list[TracedRound] | None = None,
    prompt_logprobs: list[TokenLogprobs] | None = None,
) -> RequestOutput:
    """Build the output of a step for a sequence: its new ``token_ids``, with ``logprobs`` if requested."""
    reason = sequence.finish_reason
    return RequestOutput(
        request_id=sequence.request_id,
        token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        finish_reason=reason,
        stop_token_id=sequence.stop_token_id,
        num_cached_tokens=sequence.num_cached or 0,
        num_spared_tokens=sequence.num_spared_tokens,
        timings=sequence.timings() if reason is not None else None,
        speculation=sequence.speculation(),
        rounds=rounds,
    )


def failure(request_id: str, code: RejectCode, message: str) -> RequestOutput:
    """Build the final output of a request that was refused or cannot continue."""
    error = RequestError(code=code, message=message)
    return RequestOutput(request_id=request_id, token_ids=[], finish_reason="error", error=error)


def statistics(
    scheduler: Scheduler,
    speculator: Speculator,
    *,
    prompt_tokens: int,
    generation_tokens: int,
    step_seconds: float,
) -> EngineStats:
    """Collect the statistics of an engine; the keyword arguments are what the core counts itself."""
    pages = scheduler.draft_pages
    pictures = PictureCounts() if pages is None else pages.counts
    return EngineStats(
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        kv_cache_usage=scheduler.pool.usage,
        num_preemptions=scheduler.num_preemptions,
        prompt_tokens=prompt_tokens,
        generation_tokens=generation_tokens,
        prefix_cache_queries=scheduler.prefix_queries,
        prefix_cache_hits=scheduler.prefix_hits,
        mm_cache_queries=scheduler.mm_queries,
        mm_cache_hits=scheduler.mm_hits,
        spec_rounds=speculator.num_rounds,
        spec_draft_tokens=speculator.num_drafted,
        spec_accepted_tokens=sum(speculator.accepted_per_depth),
        spec_accepted_per_depth=list(speculator.accepted_per_depth),
        draft_seconds=speculator.draft_seconds,
        step_seconds=step_seconds,
        draft_pictures=dict(pictures.by_branch),
        draft_visual_tokens=pictures.num_visual,
        draft_kept_visual_tokens=pictures.num_kept,
        draft_kv_bytes_saved=pictures.bytes_saved,
        drafting_failed=speculator.has_failed,
    )
