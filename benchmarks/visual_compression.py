"""Measure how lossy compression of images for the target affects correct answers and time to first token.

    python -m benchmarks.visual_compression --plot lossy.svg > lossy.json

The demo's held-out samples (``demo.evaluate``, scored exactly) are answered with whole pictures and with
every method at every ratio: each sample in all ways before the next one, in a rotating order, so that all
ways are measured under the same conditions. Nothing is cached across dialogues. 95 % intervals are
bootstrapped over samples, in pairs with whole pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.machine import busy_warning, load, machine
from benchmarks.ours import Ours
from benchmarks.settings import Settings
from benchmarks.visual_compression_plot import write_svg
from benchmarks.workload import Chat
from demo.build import build
from demo.evaluate import GROUPS, MAX_NEW_TOKENS, SEED, Turn, dialogues, means
from demo.pictures import TASKS, Sample, sample
from demo.scoring import score
from engine.config import NO_COMPRESSION, VisualCompression
from engine.messages import SamplingParams
from training.chart import check_plotting

WHOLE = "none"
METHODS: tuple[Literal["pool", "prune"], ...] = ("pool", "prune")
RESAMPLES = 4000
GREEDY = SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0)

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Tally:
    """Results of one way, one per sample.

    ``marks``: the score, 0 to 1. ``first_tokens``: time to first token of the first turn, in seconds.
    ``visual_tokens``: in the first turn.
    """

    marks: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    visual_tokens: list[int] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(argv)
    if chosen.plot:
        check_plotting()
    ways = {WHOLE: NO_COMPRESSION} | {
        f"{method}-{ratio:g}": VisualCompression(method=method, ratio=ratio)
        for method in METHODS
        for ratio in chosen.ratios
    }
    before, started = load(), time.time()
    settings = Settings(model=str(chosen.model or build()), threads=chosen.threads)
    tallies = walk(Ours(settings, target_visual_compression=NO_COMPRESSION), ways, chosen.samples)
    after = load()
    document = {
        "machine": machine(),
        "argv": sys.argv[1:] if argv is None else list(argv),
        "seconds": round(time.time() - started, 1),
        "load": {"before": before, "after": after},
        "warning": busy_warning(before, after),
        "settings": settings.as_dict(),
        "samples": chosen.samples,
        "ways": {
            name: {"method": way.method, "ratio": way.ratio if name != WHOLE else 1.0}
            | described(tallies[name], tallies[WHOLE])
            for name, way in ways.items()
        },
    }
    print(json.dumps(document, indent=1))
    if chosen.plot:
        write_svg(document, chosen.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.visual_compression", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--model", type=Path, help="Folder of the target model (default: the embedded demo model)."
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=160,
        help="Number of held-out samples, cycling through all tasks (default: %(default)s).",
    )
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[2, 4, 10, 25, 100],
        help="Compression ratios to measure (default: %(default)s).",
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s).")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg", help="Also plot the results against the ratio."
    )
    return parser


def walk(ours: Ours, ways: dict[str, VisualCompression], samples: int) -> dict[str, Tally]:
    """Answer ``samples`` held-out samples in every way, after one more as a warm-up that is not counted."""
    tallies = {name: Tally() for name in ways}
    for index in tqdm(range(-1, samples), desc="samples", mininterval=5):
        one = sample(SEED, index % samples, "heldout", TASKS[index % samples % len(TASKS)])
        turned = list(ways)[index % len(ways) :] + list(ways)[: index % len(ways)]
        for name in turned:
            tally = Tally() if index < 0 else tallies[name]
            _answer_sample(ours, one, ways[name], f"{name} {index}", tally)
    return tallies


def _answer_sample(ours: Ours, one: Sample, way: VisualCompression, salt: str, tally: Tally) -> None:
    [replies] = dialogues([one], partial(_answer, ours, way, salt, tally))
    marks = [score(reply, check) for reply, check in zip(replies, one.checks, strict=True)]
    tally.marks.append(sum(marks) / len(marks))


def _answer(ours: Ours, way: VisualCompression, salt: str, tally: Tally, turns: list[Turn]) -> list[str]:
    replies = []
    for images, messages in turns:
        [trace] = ours.answer([chat_of(messages, images)], GREEDY, salt=salt, lossy=way)
        if len(messages) == 1:
            tally.first_tokens.append(trace.first_token)
            assert trace.speculation is not None
            tally.visual_tokens.append(trace.speculation.visual_tokens)
        replies.append(ours.text(trace))
    return replies


def chat_of(messages: list[dict[str, Any]], images: Sequence[Any]) -> Chat:
    """Convert a turn of ``demo.evaluate`` to a chat with its pictures filled in."""
    waiting = iter(images)
    chat: Chat = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [{**part, "image": next(waiting)} if part["type"] == "image" else part for part in parts]
        chat.append({"role": message["role"], "content": parts})
    return chat


def described(tally: Tally, whole: Tally) -> dict[str, Any]:
    marks, base = np.array(tally.marks), np.array(whole.marks)
    times = np.array(tally.first_tokens) / np.array(whole.first_tokens)
    tasks = [TASKS[index % len(TASKS)] for index in range(len(marks))]
    return {
        "score": round(float(marks.mean()), 4),
        "score_change": round(float((marks - base).mean()), 4),
        "score_change_95": interval(marks - base, np.mean),
        "groups": means(list(zip(tasks, tally.marks, strict=True)), GROUPS),
        "visual_tokens_kept": round(sum(tally.visual_tokens) / sum(whole.visual_tokens), 4),
        "first_token_seconds": round(statistics.median(tally.first_tokens), 4),
        "first_token_to_whole": round(float(np.median(times)), 4),
        "first_token_to_whole_95": interval(times, np.median),
        "marks": tally.marks,
        "first_tokens": [round(seconds, 4) for seconds in tally.first_tokens],
    }


def interval(values: Floats, middle: Any) -> list[float]:
    """Return the bootstrapped 95 % interval of ``middle`` (``np.mean`` or ``np.median``) of ``values``."""
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(middle(values[drawn], axis=1), (0.025, 0.975))
    return [round(float(low), 4), round(float(high), 4)]


if __name__ == "__main__":
    main()
