"""Log-probabilities in the OpenAI format: tokens as text and as the underlying bytes."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
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
        self._spelled: dict[int, tuple[str, list[int]]] = {}  # shared by all entries of a token

    def format(self, token_id: int, logprobs: TokenLogprobs) -> TokenLogprob:
        likeliest = list(zip(logprobs.top_ids, logprobs.top_logprobs, strict=True))[: self._num_top]
        chosen = self._top(token_id, logprobs.logprob)
        alternatives = [self._top(top_id, logprob) for top_id, logprob in likeliest]
        return TokenLogprob(chosen.token, chosen.logprob, chosen.bytes, alternatives)

    def format_prompt(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> list[TokenLogprob]:
        """Format all prompt tokens. ``logprobs``: those of all but the first, which counts as certain."""
        certain = TokenLogprobs(logprob=0.0, top_ids=[], top_logprobs=[])
        return list(map(self.format, token_ids, (certain, *logprobs)))

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        """Format one token. JSON has no infinity, so impossible tokens get the value of the OpenAI API."""
        spelled = self._spelled.get(token_id)
        if spelled is None:
            raw = list(self._processor.token_bytes(token_id))
            spelled = self._spelled[token_id] = self._processor.token_text(token_id), raw
        text, raw = spelled
        return TopLogprob(text, max(logprob, LOWEST_LOGPROB), raw)


class CompletionLogprobFormatter:
    """Formats the tokens of one choice for ``/v1/completions``. ``echo``: what its text begins with."""

    def __init__(self, echo: str) -> None:
        self._echo = echo

    def format(
        self, tokens: Sequence[TokenLogprob], offsets: Sequence[int], prompt: Sequence[TokenLogprob] = ()
    ) -> CompletionLogprobs:
        """``offsets``: where each of the ``tokens`` begins in the answer. ``prompt`` precedes them."""
        both = [*prompt, *tokens]
        answered = [len(self._echo) + offset for offset in offsets]
        told = CompletionLogprobs(
            text_offset=[*self._echoed(prompt), *answered],
            token_logprobs=[token.logprob for token in both],
            tokens=[spelled(token) for token in both],
            top_logprobs=[
                {spelled(one): one.logprob for one in (*token.top_logprobs, token)} for token in both
            ],
        )
        if prompt:
            told.token_logprobs[0] = told.top_logprobs[0] = None
        return told

    def _echoed(self, tokens: Sequence[TokenLogprob]) -> Iterator[int]:
        """Yield the offsets of prompt tokens in the echoed text.

        Some tokenizers add tokens that are not in the prompt, or a space before its first word.
        """
        offset, decoder = 0, getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield offset
            text = decoder.decode(bytes(token.bytes))
            spellings = (text, text.removeprefix(" "))
            offset += next((len(one) for one in spellings if self._echo.startswith(one, offset)), 0)


def spelled(token: TopLogprob) -> str:
    """Return a token's text, or its bytes if it is part of a character, as the OpenAI API does here."""
    try:
        return bytes(token.bytes).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
