"""Compares compressor branches on requests with ten pictures (about 1,000 visual tokens)."""

from __future__ import annotations

from random import Random
from typing import Any

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged, summary
from benchmarks.workload import Chat, Trace
from demo.draft_data import prompts
from demo.pictures import scene
from engine.messages import SamplingParams, SpeculativeParams

PICTURES = 10
BASE = "none"


def measure(settings: Settings) -> dict[str, Any]:
    """Ask every question with each branch in turn, in a rotating order; caches are cold for each branch."""
    ours = Ours(settings)
    sampling = SamplingParams(max_tokens=settings.num_tokens, temperature=0.0, ignore_eos=True)
    ways: list[Any] = list(ours.core.info.compressors)
    traces: dict[str, list[Trace]] = {way: [] for way in ways}
    for index in range(-1, settings.repeats):
        chat = _album(settings.seed, index)
        first = index % len(ways)
        for way in ways[first:] + ways[:first]:
            speculative = SpeculativeParams(compressor=way)
            [trace] = ours.answer([chat], sampling, speculative, salt=f"{way} {index}")
            if index >= 0:  # the first round warms up
                traces[way].append(trace)
    assert all(
        [trace.token_ids for trace in found] == [trace.token_ids for trace in traces[BASE]]
        for found in traces.values()
    ), "compression for the draft changed an answer"
    results = {way: _described(found, traces[BASE]) for way, found in traces.items()}
    ratio = results["auto"]["seconds_to_none"]["median"]  # the default of a request
    return {
        "unit": "seconds from having ten decoded images to the last token",
        "pictures": PICTURES,
        "ways": results,
        "figures": [judged("ten images, time with auto / uncompressed", ratio, 1.0, at_least=False)],
    }


def _album(seed: int, index: int) -> Chat:
    rng = Random(f"specvlm/branches/{seed}/{index}")
    images = [scene(rng).image for _ in range(PICTURES)]
    asked = f"Look at picture {rng.randrange(PICTURES) + 1}. {rng.choice(prompts('heldout')['describe'])}"
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": asked}]}]


def _described(found: list[Trace], whole: list[Trace]) -> dict[str, Any]:
    told = [trace.speculation for trace in found if trace.speculation is not None]
    seconds = [trace.token_times[-1] - trace.start for trace in found]
    base = [trace.token_times[-1] - trace.start for trace in whole]
    return {
        "seconds": summary(seconds),
        "seconds_to_none": summary([own / other for own, other in zip(seconds, base, strict=True)]),
        "decode_to_none": summary(
            [own.decode_seconds / other.decode_seconds for own, other in zip(found, whole, strict=True)]
        ),
        "visual_tokens": sum(one.visual_tokens for one in told),
        "kept_for_the_draft": sum(shown.visual_tokens for one in told for shown in one.pictures),
        "tokens_a_round": sum(one.num_spec_tokens for one in told)
        / max(1, sum(one.num_spec_steps for one in told)),
    }


if __name__ == "__main__":
    run_measurement(measure)
