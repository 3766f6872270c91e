"""Compare compressor branches at several ratios with uncompressed images, by the draft's acceptance length.

    python -m benchmarks.compressors OUT --draft demo/weights/draft > compressors.json

Held-out prompts with one picture (some questions do not need it) and with six are written to OUT and answered
by the target, once. Then the same answers are walked with each way to compress, as chain speculation at
temperature 0 would generate them, so that two ways differ only in their rounds; 95 % intervals of the ratio
of acceptance lengths are bootstrapped over dialogues, in pairs. The draft's prefill is timed for each way;
only this part needs an otherwise idle machine. The engine is used for the answers only. JSON is printed to
stdout, tables in Markdown to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compressor_figures import HOW_BEST, against, best_fixed, by_choice, describe, together
from benchmarks.compressor_plot import markdown, write_svg
from benchmarks.compressor_prefill import prefill_times, prompt_of
from benchmarks.compressor_ways import Way, costs, sizes, ways_of
from benchmarks.machine import busy_warning, load, machine
from compressors.base import Compressor
from demo.build import build
from demo.draft_data import ALBUM, write
from engine.draft.files import OwnDraft, load_draft
from training.acceptance import Acceptance, measure
from training.batches import Batch
from training.chart import check_plotting
from training.compression import Choose
from training.data import Data, open_data
from training.generate import generate
from training.rows import Placed
from training.settings import TrainSettings
from training.teacher import Teacher

BASE = "none"
KINDS = {1: ("picture", "aside"), ALBUM: ("album",)}
"""Kinds of questions by the number of pictures in a request. An aside is unrelated to its picture."""
TIMED = 24
"""Number of dialogues per table whose prefill is timed."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(argv)
    if chosen.plot:
        check_plotting()
    model = chosen.model or build()
    before, started = load(), time.time()
    counts = {"picture": chosen.one - chosen.one // 3, "aside": chosen.one // 3, "album": chosen.six}
    data = {
        number: {kind: _answered(chosen.out, model, kind, counts[kind]) for kind in kinds}
        for number, kinds in KINDS.items()
    }
    teacher = Teacher.load(model, chosen.dtype, torch.device("cpu"))
    results = {}
    for folder in chosen.draft:
        draft = load_draft(folder, teacher.text_config, attn_implementation="sdpa")
        draft.module.eval()
        results[str(folder)] = {
            "parameters": sizes(draft),
            "tables": [
                _table(teacher, draft, kinds, pictures, model, chosen) for pictures, kinds in data.items()
            ],
        }
    after = load()
    warning = busy_warning(before, after)
    document = {
        "machine": machine(),
        "argv": sys.argv[1:] if argv is None else list(argv),
        "seconds": round(time.time() - started, 1),
        "load": {"before": before, "after": after},
        "warning": warning,
        "target": model.name,
        "results": results,
    }
    print(json.dumps(document, indent=1))
    for name, result in results.items():
        print(f"{name}\n\n{markdown(result)}\n", file=sys.stderr)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if chosen.plot:
        write_svg(results[str(chosen.draft[0])], chosen.plot)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compressors", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("out", type=Path, help="Folder for prompts and answers, which later runs reuse.")
    parser.add_argument(
        "--draft",
        type=Path,
        action="append",
        required=True,
        help="Folder of a draft; repeat the flag to measure several drafts.",
    )
    parser.add_argument("--plot", type=Path, help="SVG file for a plot of the first draft's results.")
    parser.add_argument(
        "--model", type=Path, help="Folder of the target model (default: the embedded demo model)."
    )
    parser.add_argument(
        "--one",
        type=int,
        default=96,
        help="Number of dialogues with one image; a third of their questions are unrelated to it "
        "(default: %(default)s).",
    )
    parser.add_argument(
        "--six", type=int, default=24, help="Number of dialogues with six images (default: %(default)s)."
    )
    parser.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[1, 3, 5, 10, 20],
        help="Compression ratios to measure (default: %(default)s).",
    )
    parser.add_argument(
        "--steps", type=int, default=6, help="Tokens to draft per round (default: %(default)s)."
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="Data type of the computation (default: %(default)s).",
    )
    return parser


def _answered(out: Path, model: Path, kind: str, count: int) -> TrainSettings:
    """Write ``count`` prompts of a kind and the target's answers to them, unless they already exist."""
    folder = out / f"{kind}-{count}"
    path = folder / "heldout.jsonl"
    if not path.exists():
        pictures, asides, albums = (count if kind == one else 0 for one in ("picture", "aside", "album"))
        write(folder, "heldout", pictures, 0, asides, albums)
    settings = TrainSettings.model_validate(
        {
            "model": str(model),
            "out": folder,
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


@dataclass(frozen=True, slots=True)
class Walk:
    """Results on the dialogues of one kind, by way: acceptance, and how often each branch was taken."""

    found: dict[str, Acceptance]
    taken: dict[str, Counter[str]]


def _table(
    teacher: Teacher,
    draft: OwnDraft,
    kinds: Mapping[str, TrainSettings],
    pictures: int,
    model: Path,
    chosen: argparse.Namespace,
) -> dict[str, Any]:
    data = {kind: open_data(own, own.data, model, "data.index") for kind, own in kinds.items()}
    batches = {kind: _batches(data[kind], own) for kind, own in kinds.items()}
    ways = ways_of(draft, chosen.ratios, knows_attention=teacher.knows_attention)
    walks = {kind: _walk(teacher, draft, own, ways, chosen) for kind, own in batches.items()}
    found = {name: together([walk.found[name] for walk in walks.values()]) for name in ways}
    taken = {name: sum((walk.taken[name] for walk in walks.values()), Counter()) for name in ways}
    some = [b for kind, own in kinds.items() for b in _one_by_one(data[kind], own, TIMED // len(kinds))]
    times = prefill_times(teacher, draft, some, ways, bf16=chosen.dtype == "bfloat16")
    shown = next(one for one in some if one.images)
    whole = [prompt_of(shown, teacher).placed[0].picture] * pictures
    spent = {
        name: costs(draft, way, whole, torch.finfo(_DTYPES[chosen.dtype]).bits // 8)
        for name, way in ways.items()
    }
    bests = best_fixed(draft.compressor, ways, found)
    rows = {}
    for name, way in ways.items():
        rows[name] = describe(found[name], found[BASE]) | (
            spent[name] or by_choice(draft.compressor, spent, taken[name])
        )
        rows[name] |= {"draft_prefill_ms": times[name]}
        rows[name]["by_kind"] = {kind: _of_kind(walk, name, way) for kind, walk in walks.items()}
        if way.fixed is None:
            rows[name] |= {"branches": dict(taken[name].most_common())}
            rows[name] |= against(found[name], {key: found[best] for key, best in bests.items()})
        if way.note:
            rows[name]["note"] = way.note
    return {
        "dialogues": len(found[BASE].gained),
        "dialogues_by_kind": {kind: len(walk.found[BASE].gained) for kind, walk in walks.items()},
        "dialogues_timed": len(some),
        "pictures": pictures,
        "best_fixed": bests | {"how": HOW_BEST},
        "ways": rows,
    }


def _batches(data: Data, settings: TrainSettings) -> list[Batch]:
    return list(data.batches(data.first(len(data.index), settings), settings.workers))


def _one_by_one(data: Data, settings: TrainSettings, count: int) -> Iterator[Batch]:
    """Yield the first ``count`` dialogues, each in a batch of its own."""
    alone = settings.model_copy(update={"row_length": 2, "tokens_per_pass": 2})
    return data.batches(data.first(count, alone), settings.workers)


def _walk(
    teacher: Teacher,
    draft: OwnDraft,
    batches: Sequence[Batch],
    ways: Mapping[str, Way],
    chosen: argparse.Namespace,
) -> Walk:
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
    return Walk(found, taken)


def _of_kind(walk: Walk, name: str, way: Way) -> dict[str, Any]:
    """Describe a way's results for one kind of question."""
    told = describe(walk.found[name], walk.found[BASE])
    del told["accepted_per_depth"]
    return told | ({} if way.fixed is not None else {"branches": dict(walk.taken[name].most_common())})


def _counting(choose: Choose, taken: Counter[str]) -> Choose:
    """Wrap ``choose`` to count the branches that it takes."""

    def chosen(batch: Batch, features: torch.Tensor, placed: Sequence[Placed]) -> Sequence[Compressor]:
        ways = choose(batch, features, placed)
        taken.update(way.tag for way in ways)
        return ways

    return chosen


if __name__ == "__main__":
    main()
