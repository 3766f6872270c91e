"""Writes the finished draft to a folder: weights, config, and a model card with training data and scores."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from compressors.elastic import Elastic
from engine.draft.eagle import EagleDraft
from engine.draft.files import CONFIG, DraftConfig, save_draft
from training.chart import draw_curve
from training.errors import TrainingError
from training.journal import CURVE


def check_publishable(target: Path) -> None:
    """Raise ``TrainingError`` if publishing would replace a folder that is not a draft."""
    if target.exists() and not (target / CONFIG).exists() and any(target.iterdir()):
        raise TrainingError(f"{target} is not empty and not a draft; choose another --publish folder")


def publish(
    target: Path,
    draft: EagleDraft,
    config: DraftConfig,
    vocabulary: Tensor | None,
    compressor: Elastic | None,
    facts: dict[str, Any],
    evaluations: list[dict[str, Any]],
) -> None:
    """Write the folder ``target``. A reader sees the old draft, for a moment none, or the complete new one.

    ``facts``: sections of the card, each a mapping. ``evaluations``: entries of the log, in order.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        folder = scratch / "new"
        save_draft(folder, draft, config, vocabulary, compressor)
        points = [(line["tokens"], line["acceptance_length"]) for line in evaluations]
        if len(points) > 1:
            draw_curve(folder / CURVE, points, x="tokens seen", y="held-out acceptance length")
        (folder / "README.md").write_text(card(config, facts, evaluations), encoding="utf-8")
        if target.exists():
            os.rename(target, scratch / "old")  # a non-empty folder cannot be replaced atomically
        try:
            os.rename(folder, target)
        except OSError:
            if (scratch / "old").exists():
                os.rename(scratch / "old", target)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def card(config: DraftConfig, facts: dict[str, Any], evaluations: list[dict[str, Any]]) -> str:
    """Return the model card in Markdown."""
    lines = [
        f"# Draft for {config.target}",
        "",
        "An EAGLE-style draft of one decoder layer, trained by online-logit distillation with "
        "`specvlm train`. Load it with `specvlm serve --draft`. It makes answers faster without changing "
        "their text.",
        f"Fingerprint of the target's weights: `{config.target_fingerprint}`.",
    ]
    for title, values in facts.items():
        lines += ["", f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {_cell(value)} |" for name, value in values.items()]
    lines += ["", "## Acceptance on held-out data", ""]
    if not evaluations:
        return "\n".join([*lines, "Not measured: the run had no `--eval-data`.", ""])
    lines += [
        "Acceptance length: mean number of tokens per round of chain speculation at temperature 0, including "
        "the target's own token.",
        "",
    ]
    lines += ["| step | tokens seen | acceptance length | accepted at depth 1, 2, … |", "|---|---|---|---|"]
    for line in evaluations:
        depths = ", ".join(f"{rate:.2f}" for rate in line["accepted_per_depth"])
        lines.append(f"| {line['step']} | {line['tokens']:,} | {line['acceptance_length']:.2f} | {depths} |")
    share = evaluations[-1]["greedy_share"]
    lines += ["", f"{share:.1%} of the tokens in the held-out answers are the target's greedy choice.", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)
