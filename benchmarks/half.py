"""Compares weights stored in half precision with the same weights in float32.

The arithmetic is the same, but there is half as much to read. Both answer the demo's held-out questions; the
answers must be equal, as half precision is only used for weights that it represents exactly.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.speculation import KINDS, OFF, questions
from benchmarks.timing import interleaved, judged
from benchmarks.workload import Trace, chat, picture, question
from engine.messages import SamplingParams


def measure(settings: Settings) -> dict[str, Any]:
    half = Ours(settings, draft="none")
    with patch("engine.kernels.modules.narrowest", lambda *_: torch.float32):
        whole = Ours(settings, draft="none")

    def rate(engine: Ours, index: int) -> float:
        prompt = chat(picture(settings.seed + 1000 + index), question(index))
        return engine.run([prompt], settings.num_tokens)[0].decode_rate

    rates = interleaved(lambda i: rate(half, i), lambda i: rate(whole, i), repeats=settings.repeats)
    asked = [one for kind in KINDS for one in questions(kind, settings, 2 * settings.repeats)]
    same = sum(
        a.token_ids == b.token_ids for a, b in zip(answers(half, asked), answers(whole, asked), strict=True)
    )
    return {
        "unit": "tokens per second after the first token; one stream, plain greedy decoding",
        "half": rates["a"],
        "float32": rates["b"],
        "ratio": rates["ratio"],
        "same_answers": f"{same} of {len(asked)}",
        "figures": [
            judged("half-precision weights / float32", rates["ratio"]["median"], 1.4, at_least=True),
            judged("share of equal answers", same / len(asked), 1.0, at_least=True),
        ],
    }


def answers(engine: Ours, asked: list[Any]) -> list[Trace]:
    sampling = SamplingParams(max_tokens=64, temperature=0.0)
    return [trace for one in asked for trace in engine.answer([one], sampling, OFF)]


if __name__ == "__main__":
    run_measurement(measure)
