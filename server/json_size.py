"""Counts what makes JSON slow to parse, while it arrives. What stands in its strings costs nothing."""

from __future__ import annotations

from typing import Final

MAX_CONTAINERS: Final = 100_000
"""Maximum lists and objects in a body: each takes three bytes of text but a hundred of memory, and time of
the event loop, 13 seconds for a million parts of a message.
"""

MAX_STRINGS: Final = 200_000
"""Maximum keys and strings in a body: 64 MiB of keys took 3 seconds. The most messages, parts and calls that
are allowed have 100,000.
"""

MAX_COMMAS: Final = 2_000_000
"""Maximum commas outside of strings: prompts may have a million token ids. 64 MiB of numbers took 0.8 s."""


class JsonSize:
    """Up to a mistake in the JSON, where a parser stops, the counts are exact and do not depend on how the
    text was cut into pieces.
    """

    def __init__(self) -> None:
        self.containers = self.commas = self._quotes = 0
        self._in_string = False
        self._cut = b""  # a backslash, if that was the end of the last piece

    @property
    def strings(self) -> int:
        """Number of keys and strings that have begun."""
        return (self._quotes + 1) // 2

    @property
    def excess(self) -> str | None:
        """What there is too much of."""
        for count, most, what in (
            (self.containers, MAX_CONTAINERS, "lists and objects"),
            (self.strings, MAX_STRINGS, "keys and strings"),
            (self.commas, MAX_COMMAS, "commas outside of strings"),
        ):
            if count > most:
                return f"more than {most} {what}"
        return None

    def add(self, piece: bytes) -> None:
        """Count the next piece of a body; nothing more once there is too much."""
        text = self._cut + piece
        if self._in_string and b'"' not in text and b"\\" not in text:  # as most of a picture
            return
        if self.excess is not None:
            return
        text = text.replace(rb"\\", b"")
        self._cut = b"\\" if text.endswith(b"\\") else b""
        parts = text.removesuffix(b"\\").replace(rb"\"", b"").split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self.containers += outside.count(b"[") + outside.count(b"{")
        self.commas += outside.count(b",")
        self._quotes += len(parts) - 1
        self._in_string = self._quotes % 2 == 1
