"""The bytes that each token represents, according to a tokenizer's decoder.

A token of a byte-level vocabulary may be half a character, so bytes are the only exact meaning a token
has on its own. Supports the decoders of causal language models (byte-level, and SentencePiece's with or
without byte fallback) and rejects others. Does not know chats or streams.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer

from processing.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """``strip_start`` and ``drop_first``: how decoding the first token of a text differs from the rest.

    SentencePiece writes "Hello" as "▁Hello". Decoders undo that by removing one leading space of the text
    (``strip_start`` 1) or every "▁" of its first token (``drop_first``).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._space = ""  # represents a space inside tokens; byte-level vocabularies have none
        self._byte_level = self._byte_fallback = self.drop_first = False
        self.strip_start = 0
        self._read_decoder(json.loads(tokenizer.to_str())["decoder"])

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """Return what ``token_id`` adds to a text; ``first`` if it begins one. Unknown ids add nothing."""
        if first and self.drop_first:
            return self._compute(token_id, space="")
        if token_id not in self._bytes:
            self._bytes[token_id] = self._compute(token_id, space=" ")
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """Return a token as text for people: bytes that are not a complete character become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _compute(self, token_id: int, space: str) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            # Added tokens may have characters outside the byte alphabet; such tokens represent themselves.
            known = [_BYTE_OF_CHAR.get(char) for char in token]
            return token.encode() if None in known else bytes(b for b in known if b is not None)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return (token.replace(self._space, space) if self._space else token).encode()

    def _read_decoder(self, spec: dict[str, Any] | None) -> None:
        steps = _flatten(spec)
        names = [step["type"] for step in steps]
        for step in steps:
            match step:
                case {"type": "ByteLevel"} if names == ["ByteLevel"]:
                    self._byte_level = True
                case {"type": "ByteFallback"}:
                    self._byte_fallback = True
                case {"type": "Fuse"}:
                    pass
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": " "}:
                    self._space = old
                case {"type": "Metaspace", "replacement": str(old), "prepend_scheme": scheme}:
                    self._space, self.drop_first = old, scheme != "never"
                case {"type": "Strip", "content": " ", "start": int(start), "stop": 0} if "Fuse" in names:
                    self.strip_start = start
                case _:
                    raise UnsupportedModelError(f"the tokenizer decodes with {names}, which is not supported")
        if not steps:
            raise UnsupportedModelError("the tokenizer has no decoder, so tokens cannot be converted to text")


def _flatten(spec: dict[str, Any] | None) -> list[dict[str, Any]]:
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [step for inner in spec["decoders"] for step in _flatten(inner)]
    return [spec]


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable stand-ins: visible Latin-1 bytes are themselves, the rest start at U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTE_OF_CHAR = _byte_alphabet()
