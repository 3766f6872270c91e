"""The items of a response while they are generated: the events when one begins, grows and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from server.schemas.answers import ChunkChoice, DeltaToolCall, FinishReason, TokenLogprob
from server.schemas.response_answers import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputTextPart,
)

Told = Iterator[tuple[str, dict[str, Any]]]
"""Events as pairs of type and fields."""


class OpenMessage:
    """A message with a single text part."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self._id = item_id
        self._where = {"output_index": output_index}
        self._place = {"item_id": item_id, "content_index": 0, **self._where}
        self._text = ""
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> Told:
        item = MessageItem(id=self._id, status="in_progress", content=[])
        yield "response.output_item.added", {"item": item, **self._where}
        yield "response.content_part.added", {"part": OutputTextPart(text=""), **self._place}

    def grow(self, text: str, logprobs: Sequence[TokenLogprob]) -> Told:
        self._text += text
        self._logprobs += logprobs
        yield "response.output_text.delta", {"delta": text, "logprobs": list(logprobs), **self._place}

    def end(self, status: ItemStatus) -> Told:
        item = self.item(status)
        [part] = item.content
        yield "response.output_text.done", {"text": part.text, "logprobs": part.logprobs, **self._place}
        yield "response.content_part.done", {"part": part, **self._place}
        yield "response.output_item.done", {"item": item, **self._where}

    def item(self, status: ItemStatus) -> MessageItem:
        part = OutputTextPart(text=self._text, logprobs=self._logprobs)
        return MessageItem(id=self._id, status=status, content=[part])


class OpenCall:
    """A function call."""

    def __init__(self, item_id: str, output_index: int, call_id: str, name: str) -> None:
        self._id = item_id
        self._where = {"output_index": output_index}
        self._place = {"item_id": item_id, **self._where}
        self._call_id = call_id
        self._name = name
        self._arguments = ""

    def begin(self) -> Told:
        yield "response.output_item.added", {"item": self.item("in_progress"), **self._where}

    def grow(self, arguments: str) -> Told:
        self._arguments += arguments
        yield "response.function_call_arguments.delta", {"delta": arguments, **self._place}

    def end(self, status: ItemStatus) -> Told:
        done = {"name": self._name, "arguments": self._arguments, **self._place}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"item": self.item(status), **self._where}

    def item(self, status: ItemStatus) -> FunctionCallItem:
        return FunctionCallItem(
            id=self._id,
            call_id=self._call_id,
            name=self._name,
            arguments=self._arguments,
            status=status,
        )


class ItemWriter:
    """Builds items one after the other from the deltas of a chat; ``items`` are those that have ended."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._open: OpenMessage | OpenCall | None = None
        self._logprobs: list[TokenLogprob] = []  # those of text that is held back, or of a call
        self.items: list[OutputItem] = []

    def take(self, choice: ChunkChoice) -> Told:
        self._logprobs += choice.logprobs.content if choice.logprobs else ()
        if choice.delta.content:
            yield from self._text(choice.delta.content)
        for call in choice.delta.tool_calls or ():
            yield from self._call(call)

    def finish(self, reason: FinishReason | None) -> Told:
        """End the last item. An empty answer becomes an empty message; a ``stop`` within a call means that it
        was cut off.
        """
        is_cut = reason == "length" or (reason == "stop" and isinstance(self._open, OpenCall))
        if (self._logprobs and isinstance(self._open, OpenMessage)) or not (self._open or self.items):
            yield from self._text("")
        yield from self._end("incomplete" if is_cut else "completed")

    def _text(self, text: str) -> Told:
        if not isinstance(self._open, OpenMessage):
            yield from self._end("completed")
            self._open = OpenMessage(self._item_id("msg"), len(self.items))
            yield from self._open.begin()
        if text or self._logprobs:
            yield from self._open.grow(text, self._logprobs)
        self._logprobs = []

    def _call(self, call: DeltaToolCall) -> Told:
        self._logprobs = []
        if call.id is not None:
            yield from self._end("completed")
            self._open = OpenCall(self._item_id("fc"), len(self.items), call.id, call.function.name or "")
            yield from self._open.begin()
        assert isinstance(self._open, OpenCall), "a call begins with its id, and calls do not interleave"
        if call.function.arguments:
            yield from self._open.grow(call.function.arguments)

    def _end(self, status: Literal["completed", "incomplete"]) -> Told:
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.item(status))
            self._open = None

    def _item_id(self, kind: str) -> str:
        return f"{kind}_{self._request_id}_{len(self.items)}"
