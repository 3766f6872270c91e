"""A chat as plain data: who said what, with pictures already decoded. No HTTP, no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    image: Image.Image


ContentPart = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """``content`` is ``None`` if an assistant only called tools.

    ``extra`` is passed to the chat template unchanged: ``name``, ``tool_calls``, ``tool_call_id``, and
    whatever else a template reads from a message.
    """

    role: str
    content: str | Sequence[ContentPart] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[ContentPart]:
        if self.content is None:
            return []
        return [TextPart(self.content)] if isinstance(self.content, str) else list(self.content)


def images_of(messages: Sequence[ChatMessage]) -> Iterator[Image.Image]:
    """Yield the pictures of a chat in order of appearance."""
    for message in messages:
        for part in message.parts:
            if isinstance(part, ImagePart):
                yield part.image
