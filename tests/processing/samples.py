"""Tokenizers of the kinds that models come with, trained in milliseconds. No network, no model."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tokenizer import CORPUS, tiny_tokenizer

Kind = Literal["byte_level", "byte_fallback", "metaspace"]
KINDS: tuple[Kind, ...] = ("byte_level", "byte_fallback", "metaspace")
SPECIAL = ("<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>")

# What detokenisers and special-token handling get wrong: several bytes a character, joiners, combining marks.
HARD_TEXTS = (
    "Hello world",
    "  two leading spaces, and trailing  ",
    "\n\tmixed \n\n whitespace",
    "图片里有一只猫",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈",
    "e\u0301a\u0308 \u202eright to left",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010fffd \U000f0000",
    "",
)


@lru_cache(maxsize=3)
def backend(kind: Kind) -> Tokenizer:
    if kind == "byte_level":
        return tiny_tokenizer().backend_tokenizer
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "byte_fallback" else []
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "byte_fallback", fuse_unk=True))
    if kind == "byte_fallback":  # as Llama 2, Vicuna and Mistral have it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = sorted({char for text in (CORPUS, "<|>/_▁") for char in text if char != " "})
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *byte_tokens],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    # The trainer made the byte tokens special; real ones are ordinary members of the vocabulary.
    ordinary = _without_added_tokens(tokenizer)
    ordinary.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return ordinary


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | {"added_tokens": []}))


def fast_tokenizer(kind: Kind, chat_template: str | None) -> PreTrainedTokenizerFast:
    if kind == "byte_level":
        tokenizer = tiny_tokenizer()
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(backend(kind).to_str()),
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            extra_special_tokens={"image_token": "<image>"},
            clean_up_tokenization_spaces=False,
        )
    tokenizer.chat_template = chat_template
    return tokenizer
