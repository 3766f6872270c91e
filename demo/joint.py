"""Training through the language model: tower, projector and a low-rank delta, with a loss on answers only.

Text-only rows are kept close to the raw language model's distribution. The dense heads continue with a
smaller weight and on some extra pictures, so that the tower keeps reading well although few pictures pass
through the language model.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import LlamaForCausalLM

from demo.attention import NAME
from demo.data import normalised
from demo.dialogues import DialogueBatches
from demo.heads import Heads, accuracies, losses
from demo.learners import eyes_optimizers
from demo.model import IMAGE_TOKEN_ID, Eyes, add_lora
from demo.recipe import Stage
from demo.text import own_answers


class JointLearner:
    """Trains all parts together. The base weights are frozen in bfloat16; trained weights are in float32."""

    def __init__(self, stage: Stage, language: Path, out: Path, compiled: bool):
        torch.manual_seed(stage.seed)
        self.stage, self.language = stage, language
        self.raw = LlamaForCausalLM.from_pretrained(
            language, dtype=torch.bfloat16, attn_implementation=NAME
        ).requires_grad_(False)
        model = LlamaForCausalLM.from_pretrained(
            language, dtype=torch.bfloat16, attn_implementation=NAME
        ).requires_grad_(False)
        self.text = model.model
        self.answers = own_answers(self.raw, language, out)
        self.embed = self.raw.model.embed_tokens
        self.table = self.embed.weight.float()
        self.lora = add_lora(self.text, stage.rank, stage.seed)
        self.eyes, self.heads = Eyes(model.config), Heads(model.config.hidden_size)
        self.look = torch.compile(self.eyes) if compiled else self.eyes
        self.think = torch.compile(self.text) if compiled else self.text

    def batches(self) -> Dataset[Any]:
        return DialogueBatches(
            self.stage.seed,
            self.stage.batch,
            self.language,
            self.answers,
            self.stage.extra,
            self.stage.places,
            self.stage.mix,
        )

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16):
            visual = self.look(normalised(batch["pixels"]))
            noise = torch.randint(20, self.table.shape[0], (500,))
            named = losses(self.heads, visual, batch, self.table, noise)
        hidden = self._hidden(batch, visual)
        answer, keep, right = self._answers(batch, hidden)
        dense = torch.stack(list(named.values())).sum()
        (answer + self.stage.text_weight * keep + self.stage.dense_weight * dense).backward()
        report = {
            "answer": answer.item(),
            "right": right,
            "keep": keep.item(),
            **{k: v.item() for k, v in named.items()},
        }
        if (step + 1) % 100 == 0:
            report |= {
                f"acc_{name}": value for name, value in accuracies(self.heads, visual.detach(), batch).items()
            }
        return {name: round(value, 4) for name, value in report.items()}

    def _hidden(self, batch: dict[str, Tensor], visual: Tensor) -> Tensor:
        """Return the last hidden states [B, T, W] of the rows, with pictures in place of their tokens."""
        here = batch["ids"] == IMAGE_TOKEN_ID
        flat = visual.reshape(-1, visual.shape[-1])[: int(here.sum())]
        embeds = self.embed(batch["ids"]).masked_scatter(here[..., None], flat.to(torch.bfloat16))
        return self.think(
            inputs_embeds=embeds,
            attention_mask=batch["mask"],
            position_ids=batch["positions"],
            use_cache=False,
        ).last_hidden_state

    def _answers(self, batch: dict[str, Tensor], hidden: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return (loss of the answers, KL divergence from the raw model on the text row, token accuracy)."""
        text, target = int(batch["text_row"]), batch["target"].clone()
        keep = hidden.new_zeros((), dtype=torch.float32)
        if text >= 0:
            target[text] = False
            rows = batch["target"][text].nonzero()[:, 0]
            with torch.no_grad():
                teacher = (
                    self.raw(input_ids=batch["ids"][text : text + 1, : len(rows)])
                    .logits[0]
                    .float()
                    .log_softmax(-1)
                )
            student = self._logits(hidden[text, : len(rows)]).log_softmax(-1)
            keep = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
        truth = batch["ids"][:, 1:][target[:, 1:]]
        logits = self._logits(hidden[:, :-1][target[:, 1:]])
        answer = F.cross_entropy(logits, truth)
        return answer, keep, (logits.argmax(-1) == truth).float().mean().item()

    def _logits(self, states: Tensor) -> Tensor:
        return F.linear(states, self.raw.lm_head.weight).float()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        delta = torch.optim.AdamW(self._delta(), lr=self.stage.lora_lr, betas=(0.9, 0.98), weight_decay=0.0)
        for group in delta.param_groups:
            group["peak"] = group["lr"]
        return [*eyes_optimizers(self.eyes, self.heads, self.stage), delta]

    def _delta(self) -> list[nn.Parameter]:
        return [p for layer in self.lora.values() for p in (layer.down, layer.up)]

    def trained(self) -> list[nn.Parameter]:
        return [*self.eyes.parameters(), *self.heads.parameters(), *self._delta()]

    def state(self) -> dict[str, Any]:
        delta = {
            f"{name}.{part}": getattr(layer, part).data
            for name, layer in self.lora.items()
            for part in ("down", "up")
        }
        return {"eyes": self.eyes.state_dict(), "heads": self.heads.state_dict(), "delta": delta}

    def load(self, state: dict[str, Any]) -> None:
        self.eyes.load_state_dict(state["eyes"])
        self.heads.load_state_dict(state["heads"])
        for name, layer in self.lora.items():
            if f"{name}.up" in state.get("delta", {}):
                layer.down.data.copy_(state["delta"][f"{name}.down"])
                layer.up.data.copy_(state["delta"][f"{name}.up"])
