"""Compares the throughput of eight streams with that of one, by plain decoding in the same engine."""

from __future__ import annotations

from typing import Any

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import interleaved, judged
from benchmarks.workload import Trace, chat, picture, question

STREAMS = 8


def measure(settings: Settings) -> dict[str, Any]:
    ours = Ours(settings, draft="none")

    def rate(index: int, streams: int) -> float:
        prompts = [chat(picture(settings.seed + 100 * index + i), question(i)) for i in range(streams)]
        return joint_rate(ours.run(prompts, settings.num_tokens))

    rates = interleaved(lambda i: rate(i, STREAMS), lambda i: rate(i, 1), repeats=settings.repeats)
    return {
        "unit": "output tokens per second of all streams together, while all of them are decoding",
        "streams": STREAMS,
        "many": rates["a"],
        "one": rates["b"],
        "ratio": rates["ratio"],
        "figures": [
            judged(f"throughput, {STREAMS} streams / 1", rates["ratio"]["median"], 4.5, at_least=True),
        ],
    }


def joint_rate(traces: list[Trace]) -> float:
    """Return tokens per second from when every stream has its first token to when the first stream ends."""
    begin = max(trace.token_times[0] for trace in traces)
    end = min(trace.token_times[-1] for trace in traces)
    tokens = sum(begin < moment <= end for trace in traces for moment in trace.token_times)
    return tokens / (end - begin)


if __name__ == "__main__":
    run_measurement(measure)
