"""Runs the training recipe, as in ``train(out, stage="eyes")``: resumable, with a log of JSON lines.

Knows stages, optimisers and checkpoints; a stage's loss is defined by its learner (:mod:`demo.learners`).
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demo.data import ahead
from demo.learners import Learner, learner_for
from demo.recipe import RECIPE, Stage
from demo.recipe import stage as find_stage

SAVE_SECONDS = 150.0


def train(
    out: Path,
    stage: str | None = None,
    resume: bool = True,
    language: Path | None = None,
    compiled: bool = True,
) -> Path:
    """Run one stage, or all in order, into the folder ``out``, and return the last checkpoint.

    ``language`` is the folder of the converted SmolLM2 (downloaded if None). With ``resume``, an interrupted
    stage continues from its last checkpoint and a finished one is skipped. Every stage starts from the
    weights of the previous one.
    """
    if language is None:
        from demo.language import language_folder

        language = language_folder()
    out.mkdir(parents=True, exist_ok=True)
    stages = RECIPE if stage is None else (find_stage(stage),)
    for one in stages:
        run_stage(one, out, language, resume, compiled)
    return checkpoint_path(out, stages[-1])


def checkpoint_path(out: Path, stage: Stage) -> Path:
    """Return the checkpoint file of a stage."""
    return out / f"{stage.name}.pt"


def run_stage(stage: Stage, out: Path, language: Path, resume: bool, compiled: bool) -> None:
    """Train one stage to its last step."""
    learner = learner_for(stage, language, out, compiled)
    path, step = checkpoint_path(out, stage), 0
    if resume and path.exists():
        state = torch.load(path, weights_only=True)
        learner.load(state["model"])
        step = int(state["step"])
    else:
        state = None
        before = RECIPE[: RECIPE.index(stage)]
        if before and (previous := checkpoint_path(out, before[-1])).exists():
            learner.load(torch.load(previous, weights_only=True)["model"])
    optimizers = learner.optimizers()
    if state is not None:
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
    with open(out / f"{stage.name}.jsonl", "a", buffering=1) as log:
        _loop(learner, optimizers, stage, step, path, log)


def _loop(
    learner: Learner, optimizers: list[torch.optim.Optimizer], stage: Stage, step: int, path: Path, log: Any
) -> None:
    batches = ahead(learner.batches(), step, stage.steps)
    bar = tqdm(batches, initial=step, total=stage.steps, desc=stage.name, mininterval=10)
    started = saved = time.monotonic()
    for batch in bar:
        rate = schedule(step, stage)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
        torch.manual_seed(stage.seed * 1_000_003 + step)
        named = learner.step(batch, step)
        torch.nn.utils.clip_grad_norm_(learner.trained(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 20 == 0 or step == stage.steps:
            log.write(
                json.dumps({"step": step, "seconds": round(time.monotonic() - started, 1), **named}) + "\n"
            )
        if time.monotonic() - saved > SAVE_SECONDS or step == stage.steps:
            save(learner, optimizers, step, path)
            saved = time.monotonic()


def schedule(step: int, stage: Stage) -> float:
    """Return the learning-rate factor: linear warm-up, constant, linear to ``final`` over the last 40 %."""
    left = (stage.steps - step) / (0.4 * stage.steps)
    return min(1.0, (step + 1) / stage.warmup, stage.final + (1 - stage.final) * left)


def save(learner: Learner, optimizers: list[torch.optim.Optimizer], step: int, path: Path) -> None:
    """Save the state atomically, so that the old checkpoint remains if the process is killed."""
    partial = path.with_suffix(".partial")
    torch.save(
        {"model": learner.state(), "optimizers": [one.state_dict() for one in optimizers], "step": step},
        partial,
    )
    os.replace(partial, path)
