"""Tiny drafts written as their authors publish them, and plain forwards by the formulas of their papers.

Nothing here knows transformers or our modules: RMSNorm, rotary and attention are spelled out.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCAB, HIDDEN, HEADS, KV_HEADS, WIDE = 40, 32, 4, 2, 48
THETA = 500.0
MROPE_SECTION = [2, 1, 1]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "num_hidden_layers": 1,
    "intermediate_size": WIDE,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": THETA,
    "rope_scaling": None,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
}
Tensors = dict[str, Tensor]


def write(folder: Path, tensors: Tensors, config: dict[str, Any], *, binary: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if binary:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def layer(
    prefix: str, *, inputs: int, qkv_bias: bool, heads: int = HEADS, kv_heads: int = KV_HEADS
) -> Tensors:
    """A decoder layer but for the norms before its attention; ``HIDDEN // HEADS`` is a head's width."""
    noise = torch.Generator().manual_seed(len(prefix) + inputs)
    dim = HIDDEN // HEADS
    shapes = {
        "self_attn.q_proj": (heads * dim, inputs),
        "self_attn.k_proj": (kv_heads * dim, inputs),
        "self_attn.v_proj": (kv_heads * dim, inputs),
        "self_attn.o_proj": (HIDDEN, heads * dim),
        "mlp.gate_proj": (WIDE, HIDDEN),
        "mlp.up_proj": (WIDE, HIDDEN),
        "mlp.down_proj": (HIDDEN, WIDE),
    }
    made = {f"{prefix}{name}.weight": draw(shape, noise) for name, shape in shapes.items()}
    if qkv_bias:
        made |= {
            f"{prefix}self_attn.{n}_proj.bias": draw((heads if n == "q" else kv_heads) * dim, noise)
            for n in "qkv"
        }
    return made | {f"{prefix}post_attention_layernorm.weight": 1 + draw(HIDDEN, noise)}


def eagle2(*, bias: bool = True, qkv_bias: bool = False) -> Tensors:
    noise = torch.Generator().manual_seed(2)
    made = {"fc.weight": draw((HIDDEN, 2 * HIDDEN), noise)} | layer(
        "layers.0.", inputs=HIDDEN, qkv_bias=qkv_bias
    )
    return made | ({"fc.bias": draw(HIDDEN, noise)} if bias else {})


def eagle3(
    token_ids: Tensor, *, prefix: str = "midlayer.", heads: int = HEADS, kv_heads: int = KV_HEADS
) -> Tensors:
    """``token_ids``: the target's ids of the draft's tokens, rising."""
    noise = torch.Generator().manual_seed(3)
    members = torch.zeros(VOCAB, dtype=torch.bool)
    members[token_ids] = True
    return layer(prefix, inputs=2 * HIDDEN, qkv_bias=False, heads=heads, kv_heads=kv_heads) | {
        "fc.weight": draw((HIDDEN, 3 * HIDDEN), noise),
        f"{prefix}input_layernorm.weight": 1 + draw(HIDDEN, noise),
        f"{prefix}hidden_norm.weight": 1 + draw(HIDDEN, noise),
        "norm.weight": 1 + draw(HIDDEN, noise),
        "lm_head.weight": draw((len(token_ids), HIDDEN), noise),
        "d2t": token_ids - torch.arange(len(token_ids)),
        "t2d": members,
    }


def draw(shape: int | tuple[int, ...], noise: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=noise) * 0.15


def plain_eagle2(w: Tensors, features: Tensor, embeddings: Tensor, angles: Tensor) -> Tensor:
    """``features``, ``embeddings`` ``[N, H]``, ``angles`` ``[N, head_dim / 2]``; next states ``[N, H]``."""
    x = torch.cat([embeddings, features], -1) @ w["fc.weight"].T + w.get("fc.bias", torch.zeros(HIDDEN))
    return _mlp(w, "layers.0.", x + _attend(w, "layers.0.", x, angles))


def plain_eagle3(
    w: Tensors,
    prefix: str,
    states: Tensor,
    embeddings: Tensor,
    angles: Tensor,
    *,
    normed_residual: bool = False,
) -> Tensor:
    normed = _norm(states, w[f"{prefix}hidden_norm.weight"])
    x = torch.cat([_norm(embeddings, w[f"{prefix}input_layernorm.weight"]), normed], -1)
    return _mlp(w, prefix, (normed if normed_residual else states) + _attend(w, prefix, x, angles))


def plain_head(w: Tensors, states: Tensor) -> Tensor:
    return _norm(states, w["norm.weight"]) @ w["lm_head.weight"].T


def angles_of(positions: Tensor, theta: float = THETA) -> Tensor:
    """``[N, head_dim / 2]`` of positions ``[N]``, or of M-RoPE positions ``[3, N]`` by section."""
    dim = HIDDEN // HEADS
    frequencies = theta ** (-torch.arange(0, dim, 2) / dim)
    if positions.dim() == 1:
        return positions[:, None] * frequencies
    axis = torch.tensor([axis for axis, size in enumerate(MROPE_SECTION) for _ in range(size)])
    return positions[axis].T * frequencies


def _norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _attend(w: Tensors, prefix: str, x: Tensor, angles: Tensor) -> Tensor:
    dim = HIDDEN // HEADS

    def heads(name: str) -> Tensor:
        made = x @ w[f"{prefix}self_attn.{name}_proj.weight"].T
        made = made + w.get(f"{prefix}self_attn.{name}_proj.bias", torch.zeros(made.shape[-1]))
        return made.view(len(x), -1, dim).transpose(0, 1)  # [heads, N, dim]

    def turn(y: Tensor) -> Tensor:
        a, b = y[..., : dim // 2], y[..., dim // 2 :]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    q, k, v = turn(heads("q")), turn(heads("k")), heads("v")
    k, v = (y.repeat_interleave(len(q) // len(y), dim=0) for y in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(dim)
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
    return mixed.transpose(0, 1).reshape(len(x), -1) @ w[f"{prefix}self_attn.o_proj.weight"].T


def _mlp(w: Tensors, prefix: str, x: Tensor) -> Tensor:
    y = _norm(x, w[f"{prefix}post_attention_layernorm.weight"])
    gate = y @ w[f"{prefix}mlp.gate_proj.weight"].T
    return (
        x
        + (gate * gate.sigmoid() * (y @ w[f"{prefix}mlp.up_proj.weight"].T))
        @ w[f"{prefix}mlp.down_proj.weight"].T
    )
