"""The tokenizer for grammar parsers: the bytes of each token, and the tokens that end an answer."""

from __future__ import annotations

from llguidance import LLTokenizer
from transformers import AutoTokenizer

from engine.config import EngineConfig


def load_grammar_tokenizer(config: EngineConfig, eos_token_ids: frozenset[int]) -> LLTokenizer:
    """Load the tokenizer, which takes a second for the largest vocabularies.

    Raises if the model has no tokenizer.json.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    known = range(backend.get_vocab_size(with_added_tokens=True))
    return LLTokenizer(backend.to_str(), eos_token=[i for i in sorted(eos_token_ids) if i in known])
