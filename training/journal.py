"""Reports a run's progress: a progress bar, a log of JSON lines, and a curve drawn from it."""

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
    """Progress reports of the main process; in the other processes (``main`` false) it writes nothing.

    Log lines that a killed run wrote after its last checkpoint are dropped, since those steps are run again.
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
        """Update the progress bar after a step; the remaining time that it shows is for all steps left."""
        guess = estimated_length(report.agreement, num_drafts)
        self._bar.update()
        self._bar.set_postfix_str(
            f"loss {report.loss:.3f}, acceptance length ≈{guess:.2f}{self._evaluation}, "
            f"{tokens_per_second:.0f} tokens/s",
            refresh=False,
        )

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """Write one line to the log; ``values`` must hold ``step`` and ``tokens``."""
        if "acceptance_length" in values:
            self._evaluation = f" (held-out {values['acceptance_length']:.2f})"
        if self._main:
            with open(self._out / LOG, "a") as log:
                log.write(json.dumps({"kind": kind, **values}) + "\n")

    def close(self) -> None:
        self._bar.close()
        if self._main:
            lines = [line for line in read_log(self._out / LOG) if line["kind"] == "evaluation"]
            points = [(line["tokens"], line["acceptance_length"]) for line in lines]
            if len(points) > 1:
                draw_curve(self._out / CURVE, points, x="tokens seen", y="held-out acceptance length")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return all entries of a log, without a truncated last line."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def estimated_length(agreement: Sequence[float], num_drafts: int) -> float:
    """Estimate the tokens per round, including the bonus token, from the ``agreement`` at each depth.

    Assumes that drafts are accepted independently at these rates, the last one for all deeper drafts too. The
    estimate is too high, since later drafts are harder; evaluations measure the real value.
    """
    length = kept = 1.0
    for depth in range(num_drafts):
        kept *= agreement[min(depth, len(agreement) - 1)]
        length += kept
    return length
