"""One choice: token ids from the engine in, pieces of text out.

Tokens are processed one at a time, however many a step returns, so that the text, its end and the token
count are the same as in plain decoding. The token that stopped the engine is counted but not shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from engine.client import EngineClient, EngineDeadError, RequestRejectedError
from engine.messages import GenerateRequest, RequestOutput, SpeculationStats
from processing.detokenizer import Detokenizer
from processing.stop import StopMatcher
from processing.tools.reader import CallDelta, CallReader, Read
from processing.tools.support import OutputPlan
from server.errors import bad_request, shutting_down
from server.logprobs import LogprobFormatter
from server.schemas.answers import FinishReason, TokenLogprob
from server.schemas.speculation import TracedRound
from server.speculation import TraceFormatter
from server.timeline import Timeline


@dataclass(slots=True)
class Piece:
    """New output of one choice: visible text, function calls, the log-probabilities and trees behind them,
    and the finish reason. ``offsets``: where the text of each entry of ``logprobs`` begins.
    ``prompt_logprobs``: those of all prompt tokens, in one piece, if requested.
    """

    index: int
    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    rounds: list[TracedRound] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, more: Piece) -> None:
        """Append the next piece of the same choice."""
        self.text += more.text
        self.calls += more.calls
        self.logprobs += more.logprobs
        self.offsets += more.offsets
        self.prompt_logprobs += more.prompt_logprobs
        self.rounds += more.rounds
        self.finish_reason = more.finish_reason or self.finish_reason

    @property
    def weight(self) -> int:
        """Number of tokens, alternatives and nodes, without those of the prompt, which has its own limit."""
        logprobs = sum(1 + len(token.top_logprobs) for token in self.logprobs)
        return logprobs + sum(1 + len(one.token_ids) for one in self.rounds)

    def __bool__(self) -> bool:
        told = self.logprobs or self.prompt_logprobs or self.rounds
        return bool(self.text or self.calls or told or self.finish_reason)


async def gathered(pieces: AsyncIterable[Piece], num_choices: int) -> list[Piece]:
    """Return the whole output of each choice, by index."""
    wholes = [Piece(index) for index in range(num_choices)]
    async for piece in pieces:
        wholes[piece.index].add(piece)
    return wholes


class Choice:
    """Iterate over ``pieces`` once; the counts are complete when it has ended. ``index``: that in its answer.

    ``form_field`` is the request field reported when the engine rejects the grammar, unless the cause is one
    of the ``plan``'s functions.
    ``speculation`` holds the latest statistics from the engine, ``None`` if there were none.
    """

    def __init__(
        self,
        client: EngineClient,
        request: GenerateRequest,
        *,
        index: int,
        on_first_token: Callable[[], None],
        detokenizer: Detokenizer,
        stop: StopMatcher,
        plan: OutputPlan,
        form_field: str,
        logprobs: LogprobFormatter | None,
        trace: TraceFormatter | None,
        timeline: Timeline,
    ) -> None:
        self._client = client
        self._request = request
        self._index = index
        self._on_first_token = on_first_token
        self._detokenizer = detokenizer
        self._stop = stop
        self._plan = plan
        self._reader = plan.reader()
        self._form_field = form_field
        self._logprobs = logprobs
        self._trace = trace
        self._timeline = timeline
        self._num_chars = 0
        self.num_tokens = 0
        self.num_cached = 0
        self.num_spared = 0
        self.speculation: SpeculationStats | None = None

    @property
    def request_id(self) -> str:
        return self._request.request_id

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        end = "abort"
        try:
            outputs = self._client.generate(self._request)
            async with aclosing(outputs):
                async for output in outputs:
                    self._timeline.on_output(output)
                    if output.token_ids and not self.num_tokens:
                        self._on_first_token()
                    piece = self._take(output, await self._of_prompt(output))
                    if self._reader is not None:
                        self._read_calls(self._reader, piece)
                    end = piece.finish_reason or end
                    if piece:
                        yield piece
                    if piece.finish_reason is not None:
                        return
            raise EngineDeadError("the engine ended a request without a reason")
        except RequestRejectedError as error:
            end = "error"
            if error.code != "invalid_grammar":
                raise
            message, is_of_tools = self._plan.explained(str(error))
            param = "tools" if is_of_tools else self._form_field
            raise bad_request(message, param=param, code=error.code) from None
        except Exception:
            end = "error"
            raise
        finally:
            self._timeline.on_end(end)

    async def _of_prompt(self, output: RequestOutput) -> list[TokenLogprob]:
        """Format the prompt's log-probabilities in a thread, as there may be hundreds of thousands."""
        if self._logprobs is None or output.prompt_logprobs is None:
            return []
        token_ids = self._request.prompt.token_ids
        return await asyncio.to_thread(self._logprobs.format_prompt, token_ids, output.prompt_logprobs)

    def _take(self, output: RequestOutput, of_prompt: list[TokenLogprob]) -> Piece:
        if output.finish_reason in ("abort", "error"):
            raise shutting_down()
        self.num_cached = max(self.num_cached, output.num_cached_tokens)
        self.num_spared = output.num_spared_tokens
        self.speculation = output.speculation or self.speculation
        piece = Piece(self._index, prompt_logprobs=of_prompt)
        if self._trace is not None and output.rounds is not None:
            piece.rounds += self._trace.format(output.rounds, self.num_tokens)
        for position, token_id in enumerate(output.token_ids):
            self.num_tokens += 1
            is_stop_token = output.stop_token_id is not None and position == len(output.token_ids) - 1
            if is_stop_token:
                break
            if self._logprobs is not None and output.logprobs is not None:
                piece.logprobs.append(self._logprobs.format(token_id, output.logprobs[position]))
                piece.offsets.append(self._num_chars)
            text = self._detokenizer.feed([token_id])
            self._num_chars += len(text)
            self._show(piece, text)
            if self._stop.matched is not None:
                piece.finish_reason = "stop"
                return piece
        if output.finish_reason is not None:
            self._show(piece, self._detokenizer.finish())
            piece.text += self._stop.finish()
            stopped = self._stop.matched is not None or output.finish_reason == "stop"
            piece.finish_reason = "stop" if stopped else "length"
        return piece

    def _read_calls(self, reader: CallReader, piece: Piece) -> None:
        """Separate function calls from the rest of the text. Clients run the calls of an answer that finishes
        with ``tool_calls``, so an answer that a stop string cut within a call must not.
        """
        read = reader.feed(piece.text)
        last = reader.finish() if piece.finish_reason is not None else Read()
        piece.text, piece.calls = read.text + last.text, read.calls + last.calls
        if piece.finish_reason == "stop" and reader.num_calls and not reader.is_cut:
            piece.finish_reason = "tool_calls"

    def _show(self, piece: Piece, text: str) -> None:
        """Add ``text`` as far as it may be shown. Stop strings are searched only after ``min_tokens``."""
        if self.num_tokens < self._request.sampling.min_tokens:
            piece.text += text
        else:
            piece.text += self._stop.feed(text)
