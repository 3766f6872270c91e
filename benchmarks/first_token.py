"""Measures time to first token: for a new picture, another question about it, and the same question again."""

from __future__ import annotations

from typing import Any

from benchmarks.ours import Ours
from benchmarks.settings import Settings, run_measurement
from benchmarks.timing import judged, summary
from benchmarks.workload import chat, picture, question


def measure(settings: Settings) -> dict[str, Any]:
    """Run a new picture and its two repeats one after the other, so that conditions are the same."""
    ours = Ours(settings)
    runs: list[tuple[float, ...]] = []
    for index in range(-1, settings.repeats):
        image = picture(settings.seed + 5000 + index)
        first, other = question(2 * index), question(2 * index + 1)
        runs.append(tuple(ours.run([chat(image, text)], 2)[0].first_token for text in (first, other, first)))
    cold, other_question, same = zip(*runs[1:], strict=True)  # the first run is a warm-up
    ratios = summary([b / a for a, b in zip(cold, other_question, strict=True)])
    return {
        "unit": "seconds from having the decoded image to the first token, including processing",
        "new_picture": summary(cold),
        "other_question_on_it": summary(other_question),
        "same_question_again": summary(same),
        "ratio": ratios,
        "figures": [judged("time to first token, known / new image", ratios["median"], 0.2, at_least=False)],
    }


if __name__ == "__main__":
    run_measurement(measure)
