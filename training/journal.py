"""What a run tells: a progress bar for people, a log of JSON lines, and a curve drawn from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.chart import draw_curve
from training.trainer import StepReport

LOG, CURVE = "log.jsonl", "curve.svg"


class Journal:
    """Of the main process; the others' (``main`` false) says nothing. Lines that a killed run wrote after its
    last checkpoint are dropped, since those steps are taken again.
    """

    def __init__(self, out: Path, step: int, num_steps: int, *, main: bool) -> None:
        self._main, self._out = main, out
        self._evaluation = ""
        if main:
            kept = [line for line in read_log(out / LOG) if line["step"] <= step] if step else []
            partial = out / (LOG + ".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, out / LOG)
        self._bar = tqdm(initial=step, total=num_steps, unit="step", desc="training", disable=not main)

    def show(self, report: StepReport, tokens_per_second: float, num_drafts: int) -> None:
        """After every step. The bar's own time left is for all remaining steps."""
        guess = estimated_length(report.agreement, num_drafts)
        self._bar.update()
        self._bar.set_postfix_str(
            f"loss {report.loss:.3f}, length ≈{guess:.2f}{self._evaluation}, "
            f"{tokens_per_second:.0f} tokens/s",
            refresh=False,
        )

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """One line; ``values`` hold ``step`` and ``tokens``."""
        if "acceptance_length" in values:
            self._evaluation = f", held out {values['acceptance_length']:.2f}"
        if self._main:
            with open(self._out / LOG, "a") as log:
                log.write(json.dumps({"kind": kind, **values}) + "\n")

    def close(self) -> None:
        self._bar.close()
        if self._main:
            lines = [line for line in read_log(self._out / LOG) if line["kind"] == "evaluation"]
            points = [(line["tokens"], line["acceptance_length"]) for line in lines]
            if len(points) > 1:
                draw_curve(self._out / CURVE, points, x="tokens seen", y="acceptance length, held out")


def read_log(path: Path) -> list[dict[str, Any]]:
    """All lines; a last one that a kill cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def estimated_length(agreement: Sequence[float], num_drafts: int) -> float:
    """Tokens a round, bonus included, if every draft were accepted independently at these rates by depth (the
    last one for all deeper ones). High, since later drafts are harder; evaluation measures.
    """
    length = kept = 1.0
    for depth in range(num_drafts):
        kept *= agreement[min(depth, len(agreement) - 1)]
        length += kept
    return length
