"""Token ids to text, a few at a time, never splitting a character.

Text is final when its bytes are complete characters, so at most three bytes are ever held back, and the
cost per token does not grow with the text. (``tokenizers.DecodeStream`` decodes its window again at every
token, holds text back for as long as bytes stay invalid, and cannot be flushed at the end.)
Does not know stop strings: ``processing.stop`` reads the output of this module.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from processing.vocabulary import Vocabulary


class Detokenizer:
    """Joined, the pieces that ``feed`` and ``finish`` return are the text of all ids.

    ``at_text_start``: false, for text that continues other text, keeps the space that SentencePiece
    vocabularies write before a first word. ``shown_ids``: special tokens that are not skipped.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        skip_special_tokens: bool = True,
        at_text_start: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._first = at_text_start
        self._to_strip = vocabulary.strip_start if at_text_start else 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_ids: Iterable[int]) -> str:
        """Return the text that these ids complete, possibly none."""
        pieces = []
        for token_id in token_ids:
            if token_id in self._skipped:
                continue
            pieces.append(self._vocabulary.token_bytes(token_id, first=self._first))
            self._first = False
        return self._strip(self._decoder.decode(b"".join(pieces)))

    def finish(self) -> str:
        """Return what was held back: an incomplete character becomes U+FFFD."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if self._to_strip and text:
            kept = text.lstrip(" ")
            spaces = len(text) - len(kept)
            removed = min(spaces, self._to_strip)
            # After any other character, spaces are part of the text.
            self._to_strip = 0 if kept else self._to_strip - removed
            return text[removed:]
        return text
