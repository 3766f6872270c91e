"""Prometheus metrics. One registry per app; names and labels are those of vLLM, with a prefix of our own.

Fed from two sides: step reports of the engine (gauges, cumulative counters) and the timeline of each answer
(``server.timeline``). Knows nothing of HTTP or of the meaning of tokens.
"""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import zip_longest
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from engine.messages import EngineStats, StepReport

ENGINE_LABEL: Final = "0"
LABELS: Final = ("model_name", "engine")
RATE_WINDOW_SECONDS: Final = 10.0
RECENT: Final = ("generation_tokens", "spec_rounds", "spec_draft_tokens", "spec_accepted_tokens")

LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
TOKEN_TIME_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
LENGTH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
TREE_BUCKETS: Final = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 63)
STEP_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS: Final = ("stop", "length", "abort", "error")
REJECTION_REASONS: Final = (
    *("queue_full", "queued_tokens", "picture_memory"),
    *("engine_unavailable", "shutting_down"),
)

ENGINE_COUNTERS: Final = {
    "num_preemptions": "Sequences preempted to free memory, to be recomputed.",
    "prompt_tokens": "Prompt tokens processed.",
    "generation_tokens": "Tokens generated.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "mm_cache_queries": "Pictures looked up in the encoder cache.",
    "mm_cache_hits": "Pictures found in the encoder cache.",
    "draft_seconds": "Time spent drafting.",
    "draft_kv_bytes_saved": "Bytes of draft KV cache saved by dropping visual tokens.",
}
# Counters whose names here differ from the engine's.
RENAMED_COUNTERS: Final = {
    "spec_rounds": ("spec_decode_num_drafts", "Draft trees verified."),
    "spec_draft_tokens": ("spec_decode_num_draft_tokens", "Draft tokens verified, roots excluded."),
    "spec_accepted_tokens": ("spec_decode_num_accepted_tokens", "Draft tokens accepted."),
    "step_seconds": ("engine_step_seconds", "Time spent in engine steps."),
    "draft_visual_tokens": ("visual_tokens", "Visual tokens of images processed by the draft."),
    "draft_kept_visual_tokens": ("draft_visual_tokens", "Visual tokens kept by the draft's compressor."),
}

Number = TypeVar("Number", int, float)


class Metrics:
    def __init__(self, prefix: str, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._prefix = prefix
        self._labels = (model_name, ENGINE_LABEL)
        ProcessCollector(registry=self.registry)

        self.time_to_first_token = self._histogram("time_to_first_token_seconds", LATENCY_BUCKETS)
        self.inter_token_latency = self._histogram("inter_token_latency_seconds", TOKEN_TIME_BUCKETS)
        self.time_per_output_token = self._histogram(
            "request_time_per_output_token_seconds", TOKEN_TIME_BUCKETS
        )
        self.e2e_latency = self._histogram("e2e_request_latency_seconds", LATENCY_BUCKETS)
        self.queue_time = self._histogram("request_queue_time_seconds", LATENCY_BUCKETS)
        self.prefill_time = self._histogram("request_prefill_time_seconds", LATENCY_BUCKETS)
        self.decode_time = self._histogram("request_decode_time_seconds", LATENCY_BUCKETS)
        self.inference_time = self._histogram("request_inference_time_seconds", LATENCY_BUCKETS)
        self.prompt_len = self._histogram("request_prompt_tokens", LENGTH_BUCKETS)
        self.generation_len = self._histogram("request_generation_tokens", LENGTH_BUCKETS)
        self.iteration_tokens = self._histogram("iteration_tokens_total", STEP_BUCKETS)

        self.tree_nodes = self._histogram(
            "spec_decode_tree_nodes", TREE_BUCKETS, "Draft tokens per verified tree; 0 is plain decoding."
        )

        self.engine_up = self._gauge("engine_up", "1 while the engine is loaded and responsive, else 0.")
        self._running = self._gauge("num_requests_running", "Sequences being generated.")
        self._waiting = self._gauge("num_requests_waiting", "Sequences waiting to be scheduled.")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Fraction of KV cache pages in use, 0 to 1.")
        self._drafting_failed = self._gauge(
            "spec_decode_failed", "1 if an error ended speculation until the engine restarts, else 0."
        )
        self._recent = {name: RecentSum() for name in RECENT}
        for name, text, value in (
            ("tokens_per_second", "Tokens generated per second.", self._tokens_per_second),
            ("acceptance_rate", "Fraction of verified draft tokens accepted.", self._acceptance_rate),
            ("mean_acceptance_length", "Tokens per round, bonus included.", self._mean_acceptance_length),
        ):
            self._gauge(name, f"{text} Over the last {RATE_WINDOW_SECONDS:.0f} s.").set_function(value)

        counters = {name: (name, text) for name, text in ENGINE_COUNTERS.items()} | RENAMED_COUNTERS
        self._engine_counters = {
            field: self._counter(*named).labels(*self._labels) for field, named in counters.items()
        }
        self._accepted_per_pos = self._counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens accepted, by depth; 0 is the first.",
            "position",
        )
        self._pictures = self._counter(
            "compressor_branch", "Images processed by the draft, by compressor branch.", "branch"
        )
        self.cached_prompt_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens of finished requests found in the cache."
        ).labels(*self._labels)
        self._success = self._counter("request_success", "Finished answers by reason.", "finished_reason")
        self._rejections = self._counter("admission_rejections", "Requests rejected.", "reason")
        self._http_requests = Counter(  # vLLM's, which has no prefix
            "http_requests",
            "HTTP requests by route and status class, without probes, scrapes and parts of the page.",
            ("handler", "status"),
            registry=self.registry,
        )
        for reason in FINISH_REASONS:
            self._success.labels(*self._labels, reason)
        for reason in REJECTION_REASONS:
            self._rejections.labels(*self._labels, reason)
        self._last_stats = EngineStats()

    def on_step(self, report: StepReport) -> None:
        stats = report.stats
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._kv_usage.set(stats.kv_cache_usage)
        self._drafting_failed.set(stats.drafting_failed)
        last = self._last_stats
        for name, counter in self._engine_counters.items():
            counter.inc(increase(getattr(last, name), getattr(stats, name)))
        depths = zip_longest(last.spec_accepted_per_depth, stats.spec_accepted_per_depth, fillvalue=0)
        for position, (before, now) in enumerate(depths):
            self._accepted_per_pos.labels(*self._labels, str(position)).inc(increase(before, now))
        for branch, count in stats.draft_pictures.items():
            grown = increase(last.draft_pictures.get(branch, 0), count)
            self._pictures.labels(*self._labels, branch).inc(grown)
        for name, recent in self._recent.items():
            recent.add(increase(getattr(last, name), getattr(stats, name)))
        self._last_stats = stats
        if report.num_tokens:
            self.iteration_tokens.observe(report.num_tokens)
        for size in report.tree_sizes:
            self.tree_nodes.observe(size)

    def on_finished(self, reason: str) -> None:
        self._success.labels(*self._labels, reason).inc()

    def on_rejected(self, reason: str) -> None:
        self._rejections.labels(*self._labels, reason).inc()

    def on_response(self, handler: str, status: int) -> None:
        """``handler`` is the route's pattern, never the path a client sent. ``status`` is 0 if the client was
        gone before there was one."""
        self._http_requests.labels(handler, f"{status // 100}xx" if status else "none").inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _tokens_per_second(self) -> float:
        return self._recent["generation_tokens"].value() / RATE_WINDOW_SECONDS

    def _acceptance_rate(self) -> float:
        return ratio(self._recent["spec_accepted_tokens"].value(), self._recent["spec_draft_tokens"].value())

    def _mean_acceptance_length(self) -> float:
        rounds = self._recent["spec_rounds"].value()
        return ratio(self._recent["spec_accepted_tokens"].value() + rounds, rounds)

    def _histogram(self, name: str, buckets: tuple[float, ...], text: str = "") -> Histogram:
        text = text or name.replace("_", " ").capitalize() + "."
        made = Histogram(f"{self._prefix}:{name}", text, LABELS, buckets=buckets, registry=self.registry)
        return made.labels(*self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{self._prefix}:{name}", text, LABELS, registry=self.registry).labels(*self._labels)

    def _counter(self, name: str, text: str, *more_labels: str) -> Counter:
        return Counter(f"{self._prefix}:{name}", text, LABELS + more_labels, registry=self.registry)


def increase(last: Number, now: Number) -> Number:
    """Return by how much a cumulative count grew; a smaller count means that it restarted from zero."""
    return now - last if now >= last else now


def ratio(part: int, whole: int) -> float:
    """Return NaN, which no alert mistakes for a bad value, if ``whole`` is 0."""
    return part / whole if whole else math.nan


class RecentSum:
    """Sum of the counts of the last ``RATE_WINDOW_SECONDS``."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, count: int) -> None:
        self._forget_old()
        if count:
            self._steps.append((time.monotonic(), count))
            self._total += count

    def value(self) -> int:
        self._forget_old()
        return self._total

    def _forget_old(self) -> None:
        oldest = time.monotonic() - RATE_WINDOW_SECONDS
        while self._steps and self._steps[0][0] < oldest:
            self._total -= self._steps.popleft()[1]
