"""Parses the bytes of a streamed answer and their arrival times into what a reader saw, and when.

During the run, bytes are only recorded; they are parsed afterwards, so that no stream waits for the parsing
of another. Knows server-sent events and OpenAI's chunks, but no sockets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(slots=True)
class Recording:
    """The raw response to a request. Times are seconds on one clock.

    ``reads``: pieces of bytes with their arrival times. ``error``: why the request failed.
    """

    start: float
    end: float = 0.0
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    error: str | None = None


@dataclass(slots=True)
class Answer:
    """An answer. ``times``: seconds from sending the request to each chunk with text.

    ``latency``: seconds from sending the request to the end of the answer. ``speculation``: the server's own
    report, if it made one.
    """

    start: float
    latency: float
    times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    speculation: dict[str, Any] | None = None
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first text; ``None`` for an answer without text."""
        return self.times[0] if self.times else None

    @property
    def tpot(self) -> float | None:
        """Seconds per output token after the first text, as in vLLM's benchmark."""
        if not self.times or self.output_tokens < 2:
            return None
        return (self.latency - self.times[0]) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks, as a reader sees them; a chunk may hold several tokens."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        return self.content or self.reasoning_content or self.reasoning or ""


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Metrics(msgspec.Struct):
    speculative_decoding: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    metrics: _Metrics | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def parse(recording: Recording) -> Answer:
    """Parse a recording. A stream that is not a complete answer gives one with an ``error``."""
    answer = Answer(recording.start, recording.end - recording.start, error=recording.error)
    pieces: list[str] = []
    counted = False
    for time, data in events(recording.reads):
        if data == b"[DONE]":
            break
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            answer.error = f"a chunk is not in OpenAI's format: {error}"
            break
        if chunk.error is not None:
            answer.error = error_message(chunk.error)
            break
        for choice in chunk.choices:
            if choice.delta.text:
                pieces.append(choice.delta.text)
                answer.times.append(time - recording.start)
            answer.finish_reason = choice.finish_reason or answer.finish_reason
        if chunk.usage is not None:
            counted = True
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.output_tokens = chunk.usage.completion_tokens
        if chunk.metrics is not None:
            answer.speculation = chunk.metrics.speculative_decoding
    answer.text = "".join(pieces)
    if answer.error is None and answer.finish_reason is None:
        answer.error = "the stream ended before the answer did"
    elif answer.error is None and not counted:
        answer.error = "the server reports no usage in its stream, so tokens cannot be counted"
    return answer


def events(reads: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Yield the data of each server-sent event, with the time of the read that completed it."""
    rest = b""
    data: list[bytes] = []
    for time, piece in reads:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            content = line.removesuffix(b"\r")
            if content.startswith(b"data:"):
                data.append(content[len(b"data:") :].removeprefix(b" "))
            elif not content and data:
                yield time, b"\n".join(data)
                data = []


def error_message(error: Any) -> str:
    """Return the message of OpenAI's error object, or of whatever is there instead."""
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or error)[:500]
