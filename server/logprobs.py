"""Log-probabilities in the OpenAI shape: tokens as text and as the bytes behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.messages import TokenLogprobs
from server.schemas.answers import TokenLogprob, TopLogprob

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
