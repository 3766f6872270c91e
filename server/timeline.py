"""Reports the timeline of one answer, from its arrival to its end, to the metrics. Knows no HTTP."""

from __future__ import annotations

import time

from engine.messages import RequestOutput
from server.metrics import Metrics


class Timeline:
    """One per choice; ``arrival`` is when the HTTP request was read, in ``time.monotonic`` seconds."""

    def __init__(self, metrics: Metrics, arrival: float, prompt_len: int) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._prompt_len = prompt_len
        self._first_token: float | None = None
        self._last_token = arrival
        self._num_tokens = 0
        self._num_cached = 0
        self._num_spared = 0

    def on_output(self, output: RequestOutput) -> None:
        now = time.monotonic()
        count = len(output.token_ids)
        self._num_cached = max(self._num_cached, output.num_cached_tokens)
        self._num_spared = output.num_spared_tokens
        if count and self._first_token is None:
            self._first_token = now
            self._metrics.time_to_first_token.observe(now - self._arrival)
        elif count:
            # Tokens of one step arrive together and share the gap, so that sum and count are correct.
            for _ in range(count):
                self._metrics.inter_token_latency.observe((now - self._last_token) / count)
        if count:
            self._last_token = now
            self._num_tokens += count
        if output.timings is not None:
            self._metrics.queue_time.observe(output.timings.queue)
            self._metrics.prefill_time.observe(output.timings.prefill)
            self._metrics.decode_time.observe(output.timings.decode)
            self._metrics.inference_time.observe(output.timings.prefill + output.timings.decode)

    def on_end(self, reason: str) -> None:
        """Report the end, once. ``reason`` is the finish reason, or ``abort`` or ``error``."""
        metrics = self._metrics
        metrics.on_finished(reason)
        metrics.e2e_latency.observe(time.monotonic() - self._arrival)
        metrics.prompt_len.observe(self._prompt_len - self._num_spared)
        metrics.generation_len.observe(self._num_tokens)
        metrics.cached_prompt_tokens.inc(self._num_cached)
        if self._first_token is not None and self._num_tokens > 1:
            decode_seconds = self._last_token - self._first_token
            metrics.time_per_output_token.observe(decode_seconds / (self._num_tokens - 1))
