"""Tiny targets for the published drafts of ``published_layouts``, and how both meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from engine.draft.published import LoadedDraft, load_any_draft
from tests.engine.published_layouts import CONFIG, HIDDEN, VOCAB

NUM_LAYERS = 12
TOKEN_IDS = torch.tensor([0, 3, 4, 7, 11, 12, 25, 39])
EAGLE3_CONFIG = {**CONFIG, "draft_vocab_size": len(TOKEN_IDS)}


def target(kind: str = "llama", **changes: Any) -> Any:
    """A target that differs from the drafts in all that may differ: rotary base, eps, heads, MLP."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 56,
        "rms_norm_eps": 1e-6,
        "rope_theta": 9e5,
    }
    kinds = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
        "qwen2_5_vl": Qwen2_5_VLTextConfig,
        "gemma2": Gemma2Config,
    }
    if kind == "qwen2_5_vl":
        sizes["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 2, 2]}
    return kinds[kind](**sizes | changes)


def load(folder: Path, text_config: Any = None) -> LoadedDraft:
    return load_any_draft(folder, text_config or target(), attn_implementation="sdpa")
