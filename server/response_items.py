"""The items of a response while they are made: what is told when one begins, grows and ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from server.schemas.answers import TokenLogprob
from server.schemas.response_answers import ItemStatus, MessageItem, OutputTextPart

Told = Iterator[tuple[str, dict[str, Any]]]
"""Type and fields of events."""


class OpenMessage:
    """A message of one text."""

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
