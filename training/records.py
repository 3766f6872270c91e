"""Parses records of training data into dialogues: OpenAI's message format and LLaVA's.

Knows the two formats; no files, no tokens. A record that cannot be read raises a ``DataError`` whose message
begins with ``where``, the file and line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processing.chat import ChatMessage, ContentPart, ImagePart, TextPart
from training.errors import DataError
from training.pictures import Picture, picture_from_path, picture_from_url

IMAGE_MARK = "<image>"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_LLAVA_ROLES["system"] = "system"
_EXTRA = ("name", "tool_calls", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Message:
    """A message. ``content``: a text, or texts and pictures in order; ``None`` for tool calls alone."""

    role: str
    content: str | tuple[str | Picture, ...] | None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialogue:
    messages: tuple[Message, ...]
    where: str

    def chat(self) -> list[ChatMessage]:
        """Return the messages with their pictures decoded."""
        return [ChatMessage(m.role, _content(m.content), m.extra) for m in self.messages]

    def without_answers(self) -> Dialogue:
        """Return the dialogue without the assistant's messages."""
        return Dialogue(tuple(m for m in self.messages if m.role != "assistant"), self.where)


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, every token of which is to be predicted."""

    text: str
    where: str


Item = Dialogue | Document


def pictures_key(items: Iterable[Item]) -> str:
    """Return a key that changes when one of the items' picture files is replaced; ``""`` without any.

    It samples the files, whose contents may be hundreds of gigabytes.
    """
    digest, found = hashlib.blake2b(digest_size=16), False
    for item in items:
        for message in item.messages if isinstance(item, Dialogue) else ():
            for part in message.content if isinstance(message.content, tuple) else ():
                if isinstance(part, Picture):
                    digest.update(part.stamp())
                    found = True
    return digest.hexdigest() if found else ""


def _content(content: str | tuple[str | Picture, ...] | None) -> str | list[ContentPart] | None:
    if content is None or isinstance(content, str):
        return content
    return [TextPart(part) if isinstance(part, str) else ImagePart(part.load()) for part in content]


def parse_record(record: Any, folder: Path, where: str) -> Dialogue:
    """Parse a record in either format; relative picture paths start from ``folder``. Raises ``DataError``."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: a record must be an object, not {type(record).__name__}")
    if record.get("messages") is not None:
        messages = [_openai(m, folder, where) for m in _list(record, "messages", where)]
    elif record.get("conversations") is not None:
        messages = _llava(record, folder, where)
    else:
        raise DataError(f"{where}: a record needs 'messages' (OpenAI's format) or 'conversations' (LLaVA's)")
    if record.get("tools"):
        raise DataError(f"{where}: 'tools' are not supported in training data")
    if not any(m.role == "user" for m in messages):
        raise DataError(f"{where}: there is no message with the role 'user'")
    return Dialogue(tuple(messages), where)


def to_record(dialogue: Dialogue, folder: Path) -> dict[str, Any]:
    """Convert to OpenAI's format; pictures become paths relative to ``folder``, or data URLs if not files."""

    def content(value: str | tuple[str | Picture, ...] | None) -> Any:
        if not isinstance(value, tuple):
            return value
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": part.url(folder)}}
            for part in value
        ]

    return {
        "messages": [{"role": m.role, "content": content(m.content), **m.extra} for m in dialogue.messages]
    }


def _list(owner: dict[str, Any], name: str, where: str) -> list[Any]:
    value = owner[name]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {name!r} must be a non-empty list")
    return value


def _openai(message: Any, folder: Path, where: str) -> Message:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise DataError(f"{where}: the 'role' of a message must be one of {', '.join(_ROLES)}")
    if unknown := message.keys() - {"role", "content", *_EXTRA}:
        raise DataError(f"{where}: unknown fields in a message: {', '.join(sorted(map(str, unknown)))}")
    role = "system" if message["role"] == "developer" else message["role"]
    extra = {name: message[name] for name in _EXTRA if message.get(name) is not None}
    content = message.get("content")
    if isinstance(content, list):
        content = tuple(_part(part, folder, where) for part in content)
    elif not (isinstance(content, str) or (content is None and extra.get("tool_calls"))):
        raise DataError(f"{where}: 'content' must be a string or a list of parts")
    return Message(role, content, extra)


def _part(part: Any, folder: Path, where: str) -> str | Picture:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)}} | {
            "type": "image_url",
            "image_url": str(url),
        }:
            return picture_from_url(url, folder, where)
    raise DataError(f"{where}: a part must have the type 'text' and a 'text', or 'image_url' and a 'url'")


def _llava(record: dict[str, Any], folder: Path, where: str) -> list[Message]:
    pictures = iter(found := _pictures(record.get("image"), folder, where))
    messages = []
    for turn in _list(record, "conversations", where):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise DataError(f"{where}: a turn needs 'from' and a string 'value'")
        role = _LLAVA_ROLES.get(str(turn.get("from")))
        if role is None:
            raise DataError(
                f"{where}: 'from' must be one of {', '.join(_LLAVA_ROLES)}, not {turn.get('from')!r}"
            )
        messages.append(Message(role, _with_pictures(turn["value"], role, pictures, where)))
    if next(pictures, None) is not None:
        raise DataError(f"{where}: {len(found)} images, but fewer {IMAGE_MARK} placeholders in the texts")
    return messages


def _pictures(value: Any, folder: Path, where: str) -> list[Picture]:
    """Read LLaVA's ``image``: one or more paths; in a parquet file also ``{"bytes": …, "path": …}``."""
    if value is None:
        return []
    found = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict):
            one = one.get("bytes") or one.get("path")
        if isinstance(one, bytes):
            found.append(Picture(one, where))
        elif isinstance(one, str) and one:
            found.append(picture_from_path(folder / one, where))
        else:
            raise DataError(f"{where}: 'image' must be a path or a list of paths")
    return found


def _with_pictures(
    text: str, role: str, pictures: Iterator[Picture], where: str
) -> str | tuple[str | Picture, ...]:
    """Split ``text`` at its image placeholders into texts and pictures.

    Line breaks next to a placeholder are dropped, as the chat template writes its own after a picture.
    """
    if IMAGE_MARK not in text or role != "user":
        return text
    first, *rest = text.split(IMAGE_MARK)
    parts: list[str | Picture] = [first.rstrip("\n")]
    for piece in rest:
        picture = next(pictures, None)
        if picture is None:
            raise DataError(f"{where}: more {IMAGE_MARK} placeholders in the texts than images")
        parts += [picture, piece.strip("\n")]
    return tuple(part for part in parts if part != "")
