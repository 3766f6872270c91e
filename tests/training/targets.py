"""A target that can be learnt in seconds, and plain references to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.draft.eagle import EagleDraft
from tests.models import build_tiny
from tests.training.conftest import write_jsonl

WORDS = ["red", "blue", "circle", "square", "three", "four", "left", "right", "star", "answer", "picture"]


def reciting_target(folder: Path) -> Path:
    """Build a Llama that repeats WORDS in a cycle, depending on the last word alone.

    Its layers add nothing, and the head's row of each word is the normed embedding of the word before it.
    """
    build_tiny("llama", folder)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [one for (one,) in (tokenizer.encode(f" {w}", add_special_tokens=False) for w in WORDS)]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.mul_(0.1)
        spoken = model.model.norm(model.model.embed_tokens.weight[ids])
        model.lm_head.weight[ids[1:] + ids[:1]] = spoken
    model.save_pretrained(folder)
    return folder


def recitals(path: Path, count: int, start: int = 0) -> Path:
    """Write dialogues whose answers are those that the reciting target would give."""

    def record(number: int) -> dict[str, Any]:
        said = " ".join(WORDS[(number + k) % len(WORDS)] for k in range(10 + number % 7))
        question = {"role": "user", "content": f"Go on from {WORDS[number % len(WORDS)]}."}
        return {"messages": [question, {"role": "assistant", "content": f" {said}"}]}

    return write_jsonl(path, [record(n) for n in range(start, start + count)])


@torch.no_grad()
def draft_chain(
    draft: EagleDraft, embeddings: Tensor, features: Tensor, start: int, later: list[Tensor]
) -> list[Tensor]:
    """Return the states of one round, slot by slot, as serving computes them but without a cache.

    The round has the true slots up to ``start``, then one slot for each embedding in ``later``, based on the
    state before it; all of them run again at every step. Shapes are ``[N, hidden]`` or ``[hidden]``.
    """
    truth = torch.cat([torch.zeros_like(features[:1]), features[:start]])
    states, embedded, outputs = truth, embeddings[: start + 1], []
    for step in range(len(later) + 1):
        if step:
            states = torch.cat([states, outputs[-1][None]])
            embedded = torch.cat([embedded, later[step - 1][None]])
        n = len(states)
        causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
        out = draft(states[None], embedded[None], torch.arange(n)[None], causal)
        outputs.append(out[0, -1])
    return outputs
