"""Stop strings in a stream of text.

The text ends at the stop string that is *completed* first (the longest, if one character completes several):
the point at which a model writing one character at a time would have been stopped. So the result does not
depend on how the text was cut into pieces, which matters when one step accepts many tokens. Knows text only.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """``matched`` is the stop string once it has been found; no text is returned after that.

    Text that might be the beginning of a stop string is held back until that is decided. ``include_stop``
    keeps the stop string itself in the text. The cost per character does not depend on the length of the stop
    strings.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty; remove it")
        # If one character completes several, the first in this order wins.
        self._searches = [_Search(stop) for stop in sorted(stops, key=len, reverse=True)]
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Return newly final text, never any part of a matching stop string unless it is included."""
        if self.matched is not None:
            return ""
        seen = self._held + text
        self._held = ""
        for end, char in enumerate(text, start=len(seen) - len(text) + 1):
            # Every search must read every character, even after another one has matched.
            complete = [search.stop for search in self._searches if search.reads(char)]
            if complete:
                self.matched = complete[0]
                return seen[: end if self._include_stop else end - len(self.matched)]
        cut = len(seen) - max((search.num_matching for search in self._searches), default=0)
        self._held = seen[cut:]
        return seen[:cut]

    def finish(self) -> str:
        """Return the text that was held back, as the stream has ended."""
        final, self._held = self._held, ""
        return final


class _Search:
    """Knuth-Morris-Pratt automaton: how much of ``stop`` does the text read so far end with?"""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matching = 0
        # borders[n - 1]: how much of ``stop``, less than all n, do its first n characters end with? Filled as
        # far as a match has got, so that long stop strings cost nothing if the text never begins them.
        self._borders = [0]

    def reads(self, char: str) -> bool:
        """Return whether ``char`` completes the stop string; do not call again after that."""
        self.num_matching = self._longer(self.num_matching, char)
        if self.num_matching > len(self._borders):
            self._borders.append(self._longer(self._borders[-1], char))
        return self.num_matching == len(self.stop)

    def _longer(self, matching: int, char: str) -> int:
        while matching and self.stop[matching] != char:
            matching = self._borders[matching - 1]
        return matching + (self.stop[matching] == char)
