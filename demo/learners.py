"""Learners: what each kind of stage trains, and with which loss.

A learner owns its modules and computes gradients from a batch; the training loop is in :mod:`demo.train`.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig

from demo.data import SceneBatches, normalised
from demo.heads import Heads, accuracies, losses
from demo.model import Eyes
from demo.recipe import Stage
from demo.start import prepare


class Learner(Protocol):
    """The interface that the training loop needs."""

    def batches(self) -> Dataset[Any]: ...
    def step(self, batch: Any, step: int) -> dict[str, float]: ...
    def optimizers(self) -> list[torch.optim.Optimizer]: ...
    def trained(self) -> list[nn.Parameter]: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


def learner_for(stage: Stage, language: Path, out: Path, compiled: bool) -> Learner:
    """Create the learner for a stage; ``out`` is the folder of the training's files."""
    if stage.kind == "eyes":
        return EyesLearner(stage, language, compiled)
    from demo.joint import JointLearner

    return JointLearner(stage, language, out, compiled)


def eyes_optimizers(eyes: nn.Module, heads: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """Create the optimisers: Muon for the tower's hidden matrices, AdamW for everything else."""
    matrices = [p for n, p in eyes.named_parameters() if p.ndim == 2 and "encoder" in n]
    taken = {id(p) for p in matrices}
    others = [p for p in [*eyes.parameters(), *heads.parameters()] if id(p) not in taken]
    muon = torch.optim.Muon(matrices, lr=stage.matrix_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=stage.lr, betas=(0.9, 0.97), weight_decay=0.01)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


class EyesLearner:
    """Trains tower and projector on the dense labels, without the language model."""

    def __init__(self, stage: Stage, language: Path, compiled: bool):
        torch.manual_seed(stage.seed)
        self.stage, self.language = stage, language
        text = LlamaConfig.from_pretrained(language)
        self.eyes, self.heads = Eyes(text), Heads(text.hidden_size)
        self.forward = torch.compile(self.eyes) if compiled else self.eyes
        table = load_file(language / "model.safetensors")["model.embed_tokens.weight"].float()
        self.table = table
        self.delta: dict[str, Tensor] = {}  # from an earlier joint stage, passed on unchanged
        nn.init.normal_(self.eyes.multi_modal_projector.linear_2.weight, std=0.02)
        prepare(self.eyes, normalised(SceneBatches(stage.seed + 1, 256, language)[0]["pixels"]))

    def batches(self) -> Dataset[Any]:
        return SceneBatches(
            self.stage.seed, self.stage.batch, self.language, self.stage.mix, self.stage.places
        )

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            visual = self.forward(normalised(batch["pixels"]))
            noise = torch.randint(20, self.table.shape[0], (500,))
            named = losses(self.heads, visual, batch, self.table, noise)
        total = torch.stack(list(named.values())).sum()
        total.backward()
        report = {name: round(value.item(), 4) for name, value in named.items()}
        if (step + 1) % 100 == 0:
            report |= {
                f"acc_{name}": round(value, 3)
                for name, value in accuracies(self.heads, visual.detach(), batch).items()
            }
        return report

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return eyes_optimizers(self.eyes, self.heads, self.stage)

    def trained(self) -> list[nn.Parameter]:
        return [*self.eyes.parameters(), *self.heads.parameters()]

    def state(self) -> dict[str, Any]:
        return {"eyes": self.eyes.state_dict(), "heads": self.heads.state_dict(), "delta": self.delta}

    def load(self, state: dict[str, Any]) -> None:
        self.delta = state.get("delta", {})
        self.eyes.load_state_dict(state["eyes"])
        self.heads.load_state_dict(state["heads"])
