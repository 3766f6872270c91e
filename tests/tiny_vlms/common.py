"""What every tiny model is made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

MAX_MODEL_LEN = 512


class Parts(NamedTuple):
    """A checkpoint before it is saved. The weights are drawn anew."""

    model: PreTrainedModel
    processor: ProcessorMixin


Builder = Callable[[PreTrainedTokenizerFast], Parts]
"""May add tokens to the tokenizer that it is given."""


def text_settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A language model's, for a vocabulary as it is now."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_MODEL_LEN,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }


def make(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """Construct in float32 without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        return model_class(config).to(torch.float32).eval()
