"""Finds the end of a JSON object in text that comes in pieces. Knows only the braces and strings of JSON."""

from __future__ import annotations


class Braces:
    """``depth``: number of objects and lists that are open before the text."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._escaped = False

    def end(self, text: str) -> int | None:
        """Return the index after the brace that closes all; ``None`` if it is not in this piece."""
        for index, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = char == "\\", char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return index + 1
        return None
