"""What Prometheus sees. One registry per app; names and labels are those of vLLM, behind our own prefix.

Fed from two sides: step reports of the engine (gauges, cumulative counters) and the timeline of each answer
(``server.timeline``). Knows nothing of HTTP or of tokens' meaning.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from engine.messages import EngineStats, StepReport

ENGINE_LABEL: Final = "0"
LABELS: Final = ("model_name", "engine")
RATE_WINDOW_SECONDS: Final = 10.0

LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
TOKEN_TIME_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
LENGTH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FINISH_REASONS: Final = ("stop", "length", "abort", "error")
REJECTION_REASONS: Final = ("queue_full", "engine_unavailable", "shutting_down")

ENGINE_COUNTERS: Final = {
    "num_preemptions": "Sequences that gave their memory back and start again.",
    "prompt_tokens": "Prompt tokens processed.",
    "generation_tokens": "Tokens generated.",
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "mm_cache_queries": "Pictures looked up in the encoder cache.",
    "mm_cache_hits": "Pictures found in the encoder cache.",
}


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

        self._running = self._gauge("num_requests_running", "Sequences being generated.")
        self._waiting = self._gauge("num_requests_waiting", "Sequences waiting for room.")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.")
        self._rate = TokenRate()
        self._gauge("tokens_per_second", "Tokens generated per second, lately.").set_function(
            self._rate.value
        )

        self._engine_counters = {
            name: self._counter(name, text).labels(*self._labels) for name, text in ENGINE_COUNTERS.items()
        }
        self.cached_prompt_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens of answered requests that came from the cache."
        ).labels(*self._labels)
        self._success = self._counter("request_success", "Answers by how they ended.", "finished_reason")
        self._rejections = self._counter("admission_rejections", "Requests turned away.", "reason")
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
        for name, counter in self._engine_counters.items():
            counter.inc(increase(getattr(self._last_stats, name), getattr(stats, name)))
        self._rate.add(increase(self._last_stats.generation_tokens, stats.generation_tokens))
        self._last_stats = stats
        if report.num_tokens:
            self.iteration_tokens.observe(report.num_tokens)

    def on_finished(self, reason: str) -> None:
        self._success.labels(*self._labels, reason).inc()

    def on_rejected(self, reason: str) -> None:
        self._rejections.labels(*self._labels, reason).inc()

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        text = name.replace("_", " ").capitalize() + "."
        made = Histogram(f"{self._prefix}:{name}", text, LABELS, buckets=buckets, registry=self.registry)
        return made.labels(*self._labels)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"{self._prefix}:{name}", text, LABELS, registry=self.registry).labels(*self._labels)

    def _counter(self, name: str, text: str, *more_labels: str) -> Counter:
        return Counter(f"{self._prefix}:{name}", text, LABELS + more_labels, registry=self.registry)


def increase(last: int, now: int) -> int:
    """By how much a cumulative count grew; a smaller one was started again from zero."""
    return now - last if now >= last else now


class TokenRate:
    """Tokens per second over the last ``RATE_WINDOW_SECONDS``."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, num_tokens: int) -> None:
        self._forget_old()
        if num_tokens:
            self._steps.append((time.monotonic(), num_tokens))
            self._total += num_tokens

    def value(self) -> float:
        self._forget_old()
        return self._total / RATE_WINDOW_SECONDS

    def _forget_old(self) -> None:
        oldest = time.monotonic() - RATE_WINDOW_SECONDS
        while self._steps and self._steps[0][0] < oldest:
            self._total -= self._steps.popleft()[1]
