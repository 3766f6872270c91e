"""Index of all n-gram occurrences in a text that grows at its end and is dropped from its start.

For each order n, ``heads`` maps an n-gram to the last place where it ends, and ``earlier`` links each place
to the previous one with the same n-gram, as in LZ77. Adding or dropping a token costs one dictionary access
per order. Knows nothing of requests. No torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

NGram = tuple[int, ...]
NONE = -1


class NgramIndex:
    """Index of n-grams of the orders ``shortest`` to ``longest``. Places count from the first token added."""

    def __init__(self, shortest: int, longest: int) -> None:
        self.token_ids: list[int] = []
        self._first = 0  # place of token_ids[0]
        self._heads: dict[int, dict[NGram, int]] = {n: {} for n in range(shortest, longest + 1)}
        self._earlier = {n: array("q") for n in self._heads}

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def last(self) -> int:
        """The place of the last token."""
        return self._first + len(self.token_ids) - 1

    @property
    def num_entries(self) -> int:
        """The number of distinct n-grams in the index, over all orders."""
        return sum(map(len, self._heads.values()))

    def tail(self, length: int) -> NGram:
        return tuple(self.token_ids[-length:])

    def extend(self, token_ids: Sequence[int], skip: int = 0) -> None:
        """Append tokens. N-grams that end in the first ``skip`` of them are not indexed."""
        old = len(self.token_ids)
        self.token_ids.extend(token_ids)
        for n, heads in self._heads.items():
            earlier = self._earlier[n]
            begin = max(old + skip, n - 1)  # index where the first n-gram to add ends
            earlier.extend([NONE] * (min(begin, len(self.token_ids)) - len(earlier)))
            window = self.token_ids[begin - n + 1 :]
            grams = zip(*(window[i:] for i in range(n)), strict=False)
            for place, gram in enumerate(grams, self._first + begin):
                earlier.append(heads.get(gram, NONE))
                heads[gram] = place

    def forget(self, count: int) -> None:
        """Drop the first ``count`` tokens and every n-gram that ends in them.

        N-grams that begin in them and end later must not have been indexed (``skip``).
        """
        for n, heads in self._heads.items():
            for end in range(n - 1, count):
                gram = tuple(self.token_ids[end - n + 1 : end + 1])
                if heads.get(gram) == self._first + end:
                    del heads[gram]
            del self._earlier[n][:count]
        del self.token_ids[:count]
        self._first += count

    def occurrences(self, gram: NGram) -> Iterator[int]:
        """Yield the places where ``gram`` ends, latest first."""
        earlier, first = self._earlier[len(gram)], self._first
        place = self._heads[len(gram)].get(gram, NONE)
        while place >= first:
            yield place
            place = earlier[place - first]

    def following(self, place: int, count: int) -> list[int]:
        """Return at most ``count`` tokens after ``place``."""
        start = place - self._first + 1
        return self.token_ids[start : start + count]
