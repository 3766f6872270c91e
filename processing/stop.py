"""Stop strings in a stream of text.

The text ends at the stop string that is *completed* first (of several completed by one character, at the
longest): the point at which a model writing one character at a time would have been stopped. So the result
does not depend on how the text was cut into pieces, which matters when one step accepts many tokens.
Knows text only.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """``matched`` names the stop string once it was found; nothing is returned after that.

    Text that might be the beginning of a stop string is held back until it is known. ``include_stop`` keeps
    the stop string itself in the text.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty; remove it")
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text that is final so far. Never any part of a stop string that matches, unless included."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            end, start, self.matched = min(found)
            final, self._held = self._held[: end if self._include_stop else start], ""
            return final
        cut = len(self._held) - self._num_open()
        final, self._held = self._held[:cut], self._held[cut:]
        return final

    def finish(self) -> str:
        """The stream ended: what was held back is text after all."""
        final, self._held = self._held, ""
        return final

    def _num_open(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        return max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), len(self._held) + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
