"""The messages of a request in OpenAI's format, with pictures as data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.load.errors import BenchError
from training.records import Dialogue

Messages = list[dict[str, Any]]


def to_messages(dialogue: Dialogue) -> Messages:
    """Convert a dialogue up to its last question; the server is to answer that itself."""
    messages = list(dialogue.messages)
    while messages[-1].role == "assistant":
        messages.pop()
    found: Messages = []
    for message in messages:
        content: Any = message.content
        if isinstance(content, tuple):
            content = [
                text_part(part) if isinstance(part, str) else picture_part(_bytes(part.source))
                for part in content
            ]
        found.append({"role": message.role, "content": content, **message.extra})
    return found


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def question(text: str, pictures: Sequence[bytes]) -> Messages:
    """Return one user message: pictures, then the text."""
    parts = [*(picture_part(picture) for picture in pictures), text_part(text)]
    return [{"role": "user", "content": parts}]


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def picture_part(content: bytes) -> dict[str, Any]:
    """Return a picture as a data URL part. Raises ``BenchError`` if ``content`` is not a picture."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            kind = Image.MIME[image.format or ""]
    except (OSError, KeyError, Image.DecompressionBombError) as error:
        raise BenchError(f"a file of {len(content)} bytes is not an image: {error}") from error
    url = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
