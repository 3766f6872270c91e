"""What compressing pictures for the draft is worth: every branch at every ratio, beside whole pictures.

    python -m benchmarks.compressors OUT --draft demo/weights/draft > compressors.json

Held-out prompts with one picture (some questions do not need it) and with six are written to OUT and answered
by the target, once. Then each way to compress is walked over the same answers as chain speculation at
temperature 0 would walk them, so that two ways differ in their rounds alone; 95 % intervals of the ratio of
acceptance lengths are bootstrapped over dialogues, in pairs. Needs no engine but for the answers. JSON on
stdout, tables in Markdown on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.compressor_attention import class_attention
from benchmarks.compressor_plot import markdown, write_svg
from benchmarks.compressor_ways import Way, costs, sizes, ways_of
from benchmarks.machine import load, machine
from compressors.base import Compressor
from demo.build import build
from demo.draft_data import ALBUM, write
from engine.draft_files import OwnDraft, load_draft
from training.acceptance import Acceptance, measure
from training.batches import Batch
from training.chart import check_plotting
from training.compression import Choose, place
from training.data import open_data
from training.generate import generate
from training.rows import Placed
from training.settings import TrainSettings
from training.teacher import Teacher

BASE = "none"
RESAMPLES = 4000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(argv)
    if chosen.plot:
        check_plotting()
    model = chosen.model or build()
    before, started = load(), time.time()
    data = {
        1: _answered(chosen.out / "one", model, chosen.one - chosen.one // 3, chosen.one // 3, 0),
        ALBUM: _answered(chosen.out / "six", model, 0, 0, chosen.six),
    }
    teacher = Teacher.load(model, chosen.dtype, torch.device("cpu"))
    results = {}
    for folder in chosen.draft:
        draft = load_draft(folder, teacher.text_config, attn_implementation="sdpa")
        draft.module.eval()
        results[str(folder)] = {
            "parameters": sizes(draft),
            "tables": [
                _table(teacher, draft, settings, pictures, model, chosen)
                for pictures, settings in data.items()
            ],
        }
    document = {
        "machine": machine(),
        "argv": sys.argv[1:] if argv is None else list(argv),
        "seconds": round(time.time() - started, 1),
        "load": {"before": before, "after": load()},
        "target": model.name,
        "results": results,
    }
    print(json.dumps(document, indent=1))
    for name, result in results.items():
        print(f"{name}\n\n{markdown(result)}\n", file=sys.stderr)
    if chosen.plot:
        write_svg(results[str(chosen.draft[0])], chosen.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compressors", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="folder for prompts and answers, kept for the next run")
    parser.add_argument(
        "--draft", type=Path, action="append", required=True, help="folder of a draft; repeat"
    )
    parser.add_argument("--plot", type=Path, help="an SVG of the first draft's figures")
    parser.add_argument("--model", type=Path, help="the target's folder; without it the embedded demo model")
    parser.add_argument("--one", type=int, default=96, help="dialogues with one picture, a third need it not")
    parser.add_argument("--six", type=int, default=24, help="dialogues with six pictures")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1, 3, 5, 10, 20])
    parser.add_argument("--steps", type=int, default=6, help="drafts a round")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of all arithmetic"
    )
    return parser


def _answered(out: Path, model: Path, pictures: int, asides: int, albums: int) -> TrainSettings:
    """Prompts, and the target's answers to them where they are not there yet."""
    path = out / "heldout.jsonl"
    if not path.exists():
        write(out, "heldout", pictures, 0, asides, albums)
    settings = TrainSettings.model_validate(
        {
            "model": str(model),
            "out": out,
            "data": [path],
            "generate": "only",
            "generate_max_tokens": 120,
            "device": "cpu",
            "max_length": 4096,
            "row_length": 400,
            "workers": 0,
        }
    )
    return settings.model_copy(update={"data": generate(settings, model, [path])})


def _table(
    teacher: Teacher,
    draft: OwnDraft,
    settings: TrainSettings,
    pictures: int,
    model: Path,
    chosen: argparse.Namespace,
) -> dict[str, Any]:
    data = open_data(settings, settings.data, model, "data.index")
    batches = list(data.batches(data.first(len(data.index), settings), settings.workers))
    scores = class_attention(model, (image for batch in batches for image in batch.images))
    ways = ways_of(draft, chosen.ratios, scores)
    taken: dict[str, Counter[str]] = {name: Counter() for name in ways}
    found = measure(
        draft.module,
        teacher,
        batches,
        draft.vocabulary,
        steps=chosen.steps,
        bf16=chosen.dtype == "bfloat16",
        choices={name: _counting(way.choose, taken[name]) for name, way in ways.items()},
    )
    first = next(placed for batch in batches if (placed := place(batch, teacher.grids)))[0].picture
    rows = {
        name: _row(found[name], found[BASE], taken[name], way)
        | costs(draft, way, [first] * pictures, torch.finfo(_DTYPES[chosen.dtype]).bits // 8)
        for name, way in ways.items()
    }
    return {"dialogues": len(found[BASE].gained), "pictures": pictures, "ways": rows}


def _row(found: Acceptance, base: Acceptance, taken: Counter[str], way: Way) -> dict[str, Any]:
    low, high = interval(found.histograms.sum(1), base.histograms.sum(1))
    row: dict[str, Any] = {
        "acceptance_length": round(found.length, 4),
        "to_whole_pictures": round(found.length / base.length, 4),
        "to_whole_pictures_95": [round(low, 4), round(high, 4)],
        "visual_tokens_kept": round(found.num_kept / max(1, found.num_visual), 4),
        "accepted_per_depth": found.describe()["accepted_per_depth"],
    }
    if way.fixed is None:
        row["branches"] = dict(taken.most_common())
    return row | ({"note": way.note} if way.note else {})


def interval(rounds: npt.NDArray[np.int64], base: npt.NDArray[np.int64]) -> tuple[float, float]:
    """95 % of the ratio of two acceptance lengths over the same answers, from their rounds in each dialogue,
    int64 ``[D]``. Both gain the same tokens, so it is the ratio of rounds turned round.
    """
    drawn = np.random.default_rng(0).integers(0, len(rounds), (RESAMPLES, len(rounds)))
    low, high = np.quantile(base[drawn].sum(1) / np.maximum(1, rounds[drawn].sum(1)), (0.025, 0.975))
    return float(low), float(high)


def _counting(choose: Choose, taken: Counter[str]) -> Choose:
    """``choose``, with the branches that it takes counted."""

    def chosen(batch: Batch, features: torch.Tensor, placed: Sequence[Placed]) -> Sequence[Compressor]:
        ways = choose(batch, features, placed)
        taken.update(way.tag for way in ways)
        return ways

    return chosen


if __name__ == "__main__":
    main()
