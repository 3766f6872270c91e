"""Log-probabilities in the OpenAI shape: tokens as text and as the bytes behind it."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine.messages import TokenLogprobs
from server.schemas.answers import TokenLogprob, TopLogprob
from server.schemas.completions import CompletionLogprobs

if TYPE_CHECKING:
    from processing.processor import Processor

LOWEST_LOGPROB: Final = -9999.0


class LogprobFormatter:
    def __init__(self, processor: Processor, num_top: int) -> None:
        self._processor = processor
        self._num_top = num_top

    def format(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        likeliest = list(zip(logprobs.top_ids, logprobs.top_logprobs, strict=True))[: self._num_top]
        chosen = self._top(token_id, logprobs.logprob)
        return TokenLogprob(
            token=chosen.token,
            logprob=chosen.logprob,
            bytes=chosen.bytes,
            top_logprobs=[self._top(top_id, logprob) for top_id, logprob in likeliest],
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        """JSON has no infinity, so impossible tokens get the number that the OpenAI API uses."""
        raw = self._processor.token_bytes(token_id)
        return TopLogprob(
            token=self._processor.token_text(token_id), logprob=max(logprob, LOWEST_LOGPROB), bytes=list(raw)
        )


class CompletionLogprobFormatter:
    """The tokens of one choice in the shape of ``/v1/completions``, in the order in which they came.

    ``offset``: characters of the choice's text before the first token.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def format(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(token.bytes)))
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[token.logprob for token in tokens],
            tokens=[spelled(token) for token in tokens],
            top_logprobs=[
                {spelled(one): one.logprob for one in (*token.top_logprobs, token)} for token in tokens
            ],
        )


def spelled(token: TopLogprob) -> str:
    """A token that is part of a character is told by its bytes, as the OpenAI API does it here."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
