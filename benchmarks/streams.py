"""Compares throughput with and without speculation for 1 to 16 concurrent streams: it should rarely lose."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.batch import joint_rate
from benchmarks.ours import SPECULATE, Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.speculation import OFF, questions
from benchmarks.timing import interleaved, judged
from engine.messages import SamplingParams, SpeculativeParams

STREAMS = (1, 2, 4, 8, 16)


def measure(settings: Settings) -> dict[str, Any]:
    ours = Ours(settings)
    chats = questions("describe", settings, max(STREAMS))

    def rate(speculative: SpeculativeParams, streams: int, index: int) -> float:
        # All streams generate the same length, so that the batch keeps its size; more streams generate more,
        # as the first must not end while the prompt of the last is still being processed.
        length = settings.num_tokens + 16 * streams
        sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True)
        salt = f"{speculative.enabled} {streams} {index}"
        return joint_rate(ours.answer(chats[:streams], sampling, speculative, salt=salt))

    results: dict[str, Any] = {
        "unit": "output tokens per second of all streams together, while all of them are decoding"
    }
    figures = []
    for streams in STREAMS:
        rates = interleaved(
            partial(rate, SPECULATE, streams), partial(rate, OFF, streams), repeats=settings.repeats
        )
        results[f"{streams} streams"] = {"on": rates["a"], "off": rates["b"], "ratio": rates["ratio"]}
        figures.append(judged(f"speed-up, {streams} streams", rates["ratio"]["median"], 0.97, at_least=True))
    results["figures"] = figures
    return results


if __name__ == "__main__":
    run_measurement(measure)
