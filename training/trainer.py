"""Runs optimiser steps: teacher and draft forward, gradients summed over passes and processes, AdamW.

The loss of a step is the mean over all tokens that its batch predicts, so it does not matter how the batch is
cut into rows, passes and processes. Knows nothing of files or progress.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.draft.eagle import EagleDraft
from training.batches import Batch
from training.compression import Compression, by_dialogue, per_picture
from training.errors import TrainingError
from training.losses import cross_entropy, distil
from training.rows import Placed, Rows, shortened, whole_rows
from training.settings import TrainSettings
from training.teacher import Head, Seen
from training.unroll import unrolled

BETAS = (0.9, 0.95)


@dataclass(frozen=True, slots=True)
class GateReport:
    """Report on one step of a selecting gate.

    ``loss``: in nats per predicted token of dialogues with pictures, including the cost of kept tokens and
    the balance term. ``choices``: share of pictures for which it would take each branch, by tag. ``seconds``:
    time that this process spent running all branches for it, over all its passes.
    """

    loss: float
    choices: dict[str, float]
    seconds: float

    def describe(self) -> dict[str, Any]:
        choices = {tag: round(share, 4) for tag, share in self.choices.items()}
        return {
            "loss": float(f"{self.loss:.5g}"),
            "choices": choices,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report on one step, with means over predicted tokens.

    ``agreement``: for each draft step, how often draft and target have the same most likely token (of the
    draft's vocabulary). ``stop``: whether some process wants to stop. ``gate``: the report of the last step
    in which the gate learnt from a picture, ``None`` before.
    """

    loss: float
    ce: float
    feature: float
    agreement: list[float]
    grad_norm: float
    lr: float
    stop: bool
    gate: GateReport | None = None

    def describe(self) -> dict[str, Any]:
        values = {
            name: float(f"{getattr(self, name):.5g}") for name in ("loss", "ce", "feature", "grad_norm")
        }
        told = {**values, "lr": self.lr, "agreement": [round(rate, 4) for rate in self.agreement]}
        return told if self.gate is None else told | {"gate": self.gate.describe()}


class Trainer:
    """Trains the draft, and its compressor if there is one.

    ``accelerator``: an ``accelerate.Accelerator``, which knows the processes and sums over them. ``see``:
    returns the target's outputs for a batch. ``head``: the target's head for the draft's vocabulary.
    ``num_steps``: where the schedule ends. ``compression``: how pictures are compressed; without it they stay
    whole.
    """

    def __init__(
        self,
        settings: TrainSettings,
        accelerator: Any,
        see: Callable[[Batch], Seen],
        draft: EagleDraft,
        head: Head,
        num_steps: int,
        compression: Compression | None = None,
    ) -> None:
        self._settings, self._accelerator, self._num_steps = settings, accelerator, num_steps
        self._see, self._head = see, head
        self._device: torch.device = accelerator.device
        self.draft = draft.to(self._device)
        self._compression = compression
        groups: list[dict[str, Any]] = [{"params": list(self.draft.parameters()), "scale": 1.0}]
        if compression is not None:
            added = list(compression.compressor.to(self._device).parameters())
            groups.append({"params": added, "scale": settings.compressor_lr})
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, weight_decay=0.0)
        decays = [settings.unroll_decay**step for step in range(settings.unroll)]
        self._step_weights = [decay / sum(decays) for decay in decays]
        selects = compression is not None and settings.compressor == "select"
        self._tags = [way.tag for way in compression.compressor.ways] if compression and selects else []
        # Sums over the current step: the gate's loss, the share of tokens that it covers, and its choices.
        self._gate_sums = torch.zeros(2 + len(self._tags), device=self._device)
        self._gate_seconds = 0.0
        self._gate_report: GateReport | None = None

    def step(self, number: int, batches: Iterable[Batch], num_targets: int, *, stop: bool) -> StepReport:
        """Run step ``number``. Every process must call it, even one without a pass.

        ``batches``: this process's passes. ``num_targets``: tokens that the passes of all processes predict.
        """
        settings = self._settings
        self.draft.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(4 + 2 * settings.unroll, device=self._device)
        self._gate_sums.zero_()
        self._gate_seconds = 0.0
        for batch in batches:
            sums[1:] += self._backward(batch.to(self._device), number, num_targets)
        sums[0] = float(stop)
        self._sum_gradients()
        sums = self._accelerator.reduce(torch.cat([sums, self._gate_sums]), reduction="sum")
        sums, gate = sums.split([len(sums) - len(self._gate_sums), len(self._gate_sums)])
        rate = learning_rate(number, self._num_steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, settings.clip))
        if not math.isfinite(norm):  # the same in all processes, as gradients are summed
            raise TrainingError(
                f"step {number + 1}: the gradient norm is {norm}, so the step was not taken. Check the data, "
                "or start over with --no-resume and a lower --lr; the last checkpoint is not affected"
            )
        self.optimizer.step()
        stops, total, ce, feature, *rest = sums.tolist()
        hits, tried = rest[: settings.unroll], rest[settings.unroll :]
        agreement = [hit / max(1.0, count) for hit, count in zip(hits, tried, strict=True)]
        means = (total, ce / num_targets, feature / num_targets)
        self._report_gate(*gate.tolist())
        return StepReport(*means, agreement, norm, rate, stops > 0, self._gate_report)

    def _report_gate(self, loss: float, share: float, *counts: float) -> None:
        if share > 0.0:
            choices = {tag: n / sum(counts) for tag, n in zip(self._tags, counts, strict=True)}
            self._gate_report = GateReport(loss / share, choices, self._gate_seconds)

    def _backward(self, batch: Batch, number: int, num_targets: int) -> Tensor:
        """Add the gradients of a pass, and return sums over its predicted tokens.

        These are the loss, the CE and SmoothL1 of draft step 0, and for every draft step the hits and the
        number of tokens that it could predict.
        """
        settings, where = self._settings, batch.predicts.flatten()
        with torch.autocast(self._device.type, torch.bfloat16, settings.mixed_precision == "bf16"):
            seen = self._see(batch)
            wanted = seen.features.flatten(0, 1)[where]
            with torch.no_grad():
                labels = self._head(wanted).float().softmax(-1)
            given = noisy(seen.features, settings.noise, (settings.seed, number, batch.first_row))
            whole = whole_rows(self.draft, seen.embeddings, given, seen.positions, batch.dialogues)
            rows, gate_loss = self._compress(batch, seen, whole, labels, number, num_targets)
            slots = rows.slots[where]  # -1: a visual token that was compressed away
            rounds = rows.rounds.flatten()[slots].masked_fill(slots < 0, -1)
            valid = [(rounds >= step).float() for step in range(settings.unroll)]
            weights = {"ce_weight": settings.ce_weight, "feature_weight": settings.feature_weight}
            losses = [
                distil(state.flatten(0, 1)[slots], wanted, self._head, labels, use, **weights)
                for state, use in zip(unrolled(self.draft, rows, settings.unroll), valid, strict=True)
            ]
        total = sum(w * loss.total for w, loss in zip(self._step_weights, losses, strict=True)) / num_targets
        assert isinstance(total, Tensor)
        (total + gate_loss).backward()
        first = losses[0]
        named = [total.detach(), first.ce, first.feature]
        return torch.stack([*named, *(loss.hits for loss in losses), *(use.sum() for use in valid)])

    def _compress(
        self, batch: Batch, seen: Seen, whole: Rows, labels: Tensor, number: int, num_targets: int
    ) -> tuple[Rows, Tensor]:
        """Return the rows to train on in this step, and the gate's loss (0 in steps that do not train it)."""
        compression, nothing = self._compression, whole.joined.new_zeros(())
        if compression is None or not batch.images:
            return whole, nothing
        placed = compression.place(batch, seen.scores)
        rows = shortened(whole, placed, compression.draw(batch, seen.features, placed, number))
        if self._settings.compressor != "select" or number % self._settings.gate_every:
            return rows, nothing
        began = time.monotonic()
        costs, tokens = self._costs(batch, whole, placed, labels)
        shares = tokens / num_targets
        loss, picks = compression.gate_loss(batch, seen.features, placed, costs, shares, number)
        counts = torch.bincount(picks, minlength=len(self._tags))
        self._gate_sums += torch.cat([torch.stack([loss.detach(), shares.sum()]), counts])
        self._gate_seconds += time.monotonic() - began
        return rows, loss

    @torch.no_grad()
    def _costs(
        self, batch: Batch, whole: Rows, placed: list[Placed], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cost of each branch for each picture, and the number of tokens that it is a mean over.

        Cost, float32 ``[P, branches]``: the draft's cross-entropy per predicted token of the picture's
        dialogue if all pictures take the branch. Number of tokens, ``[P]``: shared among the pictures of a
        dialogue.
        """
        assert self._compression is not None
        where, dialogues = batch.predicts.flatten(), batch.numbered_dialogues.flatten()
        firsts = torch.stack([one.slots[0] for one in placed])
        costs = []
        for way in self._compression.compressor.ways:
            rows = shortened(whole, placed, [way] * len(placed))
            (state,) = unrolled(self.draft, rows, 1)
            slots = rows.slots[where]
            there = slots >= 0
            logits = self._head(state.flatten(0, 1)[slots[there]]).float()
            losses = cross_entropy(logits, labels[there])
            costs.append(by_dialogue(losses, dialogues[where][there], dialogues[firsts]))
        means, counts = zip(*costs, strict=True)
        return torch.stack(means, dim=1), per_picture(counts[0], dialogues[firsts])

    def _sum_gradients(self) -> None:
        """Sum the gradients over processes in one call. Losses are parts of the mean, so a sum is right."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = self._accelerator.reduce(torch.cat([g.flatten() for g in gradients]), reduction="sum")
        for parameter, part in zip(self._parameters, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


def learning_rate(step: int, num_steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of step ``step`` (from 0): linear warm-up, then constant or falling to zero.

    A falling rate reaches zero at ``num_steps``.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    falling = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}
    return settings.lr * falling[settings.schedule]


def noisy(features: Tensor, amount: float, key: tuple[int, int, int]) -> Tensor:
    """Add uniform noise from -``amount`` to ``amount`` to ``features`` ``[B, N, hidden]``.

    From EAGLE (arXiv 2401.15077, section 3.3). ``key`` is (seed, step, first row), so that a step draws the
    same noise whether it was resumed or not, on one process or on many.
    """
    if amount == 0.0:
        return features
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(features.shape, generator=generator).mul_(2 * amount).sub_(amount)
    return features + noise.to(features)
