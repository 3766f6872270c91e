"""Compares plain decoding of one stream with ``model.generate``: same prompt, same weights, same process."""

from __future__ import annotations

from typing import Any

from benchmarks.ours import Ours
from benchmarks.reference import Reference
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import interleaved, judged
from benchmarks.workload import Trace, chat, first_difference, picture, question


def measure(settings: Settings) -> dict[str, Any]:
    ours, reference = Ours(settings, draft="none"), Reference(settings)
    traces: dict[tuple[str, int], Trace] = {}

    def run(who: str, index: int) -> float:
        prompt = chat(picture(settings.seed + 1000 + index), question(index))
        if who == "ours":
            trace = ours.run([prompt], settings.num_tokens)[0]
        else:
            trace = reference.run(prompt, settings.num_tokens)
        traces[who, index] = trace
        return trace.decode_rate

    rates = interleaved(
        lambda index: run("ours", index), lambda index: run("reference", index), repeats=settings.repeats
    )
    ratio = rates["ratio"]["median"]
    return {
        "unit": "tokens per second after the first token; one stream, greedy, a new image in each run",
        "ours": rates["a"],
        "transformers": rates["b"],
        "ratio": rates["ratio"],
        # Greedy outputs are equal except for near-ties; the first difference is reported.
        "first_difference": [
            first_difference(traces["ours", i].token_ids, traces["reference", i].token_ids)
            for i in range(settings.repeats)
        ],
        "figures": [judged("decoding speed / model.generate", ratio, 1.8, at_least=True)],
    }


if __name__ == "__main__":
    run_measurement(measure)
