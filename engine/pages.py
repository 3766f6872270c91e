"""The pool of KV pages and the page tables of sequences. No torch: a page is a number here.

A page is in exactly one state:

    free     ref 0, no hash      content unused
    cached   ref 0, hash         content valid, may be shared again or evicted (least recently used first)
    in use   ref > 0             held by that many tables; hashed once its content is full and computed

A page may have several hashes: a page of the draft can also be found by the hash of its first slots.

At any idle moment ``free + cached == total``; ``check`` asserts this and more.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


class PagePool:
    """Manages the reference counts, hashes and eviction of ``num_pages`` pages."""

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a pool needs at least one page, got {num_pages}")
        self.num_pages = num_pages
        self._refs = [0] * num_pages
        self._hashes: list[tuple[bytes, ...]] = [()] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))  # a stack: low numbers leave first
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """The number of pages that ``allocate`` can hand out."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """The fraction of pages in use, 0 to 1."""
        return 1.0 - self.num_available / self.num_pages

    def allocate(self, count: int) -> list[int]:
        """Take ``count`` pages with arbitrary content, evicting cached ones if necessary."""
        if count > self.num_available:
            raise RuntimeError(f"asked for {count} pages with {self.num_available} available")
        pages = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._refs[page] = 1
            pages.append(page)
        return pages

    def lookup(self, hashes: Iterable[bytes]) -> list[int]:
        """Return the pages of the longest known prefix of ``hashes``. Takes no reference: see ``share``."""
        pages = []
        for page_hash in hashes:
            page = self._by_hash.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_idle(self, pages: Iterable[int]) -> int:
        """Return how many of ``pages`` are cached; sharing those reduces the number of available pages."""
        return sum(self._refs[page] == 0 for page in pages)

    def share(self, pages: Iterable[int]) -> None:
        """Take a reference to pages found by ``lookup``."""
        for page in pages:
            if self._refs[page] == 0:
                del self._cached[page]
            self._refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop references. Pages are released in reverse, so that a prefix outlives its continuation."""
        for page in reversed(pages):
            if self._refs[page] < 1:
                raise RuntimeError(f"page {page} released more often than taken")
            self._refs[page] -= 1
            if self._refs[page] == 0:
                if self._hashes[page]:
                    self._cached[page] = None
                else:
                    self._free.append(page)

    def publish(self, page: int, page_hash: bytes) -> None:
        """Register a hash for the computed content of a page, so that the page can be shared.

        The content must not change afterwards.
        If another page is already registered with this hash, that page remains the shared one.
        """
        if page_hash not in self._by_hash:
            self._hashes[page] += (page_hash,)
            self._by_hash[page_hash] = page

    def check(self, tables: Iterable[PageTable]) -> None:
        """Assert that every page is in exactly one state and referenced by exactly these tables."""
        held = Counter(page for table in tables for page in table.pages)
        assert all(self._refs[page] == held[page] for page in range(self.num_pages)), (
            "reference counts drifted"
        )
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is free twice"
        assert not free & cached, "a page is free and cached"
        assert free | cached == {p for p in range(self.num_pages) if self._refs[p] == 0}, (
            "an idle page is lost"
        )
        assert not any(self._hashes[page] for page in free), "a free page has a hash"
        assert all(self._hashes[page] for page in cached), "a cached page has no hash"
        hashed = {h: page for page, hashes in enumerate(self._hashes) for h in hashes}
        assert hashed == self._by_hash, "hash index drifted"

    def _evict(self) -> int:
        page, _ = self._cached.popitem(last=False)
        for page_hash in self._hashes[page]:
            del self._by_hash[page_hash]
        self._hashes[page] = ()
        return page


@dataclass(slots=True, eq=False)
class PageTable:
    """The pages of one sequence in logical order.

    Token ``i`` lies in slot ``i % page_size`` of page ``pages[i // page_size]``.

    Invariant: the first ``num_published`` pages are full, computed and offered to the pool's index.
    """

    pool: PagePool
    page_size: int
    pages: list[int] = field(default_factory=list)
    num_published: int = 0

    def num_missing(self, num_tokens: int) -> int:
        """Return how many more pages are needed to hold ``num_tokens`` tokens."""
        return max(0, -(-num_tokens // self.page_size) - len(self.pages))

    def can_reserve(self, num_tokens: int) -> bool:
        return self.num_missing(num_tokens) <= self.pool.num_available

    def reserve(self, num_tokens: int) -> None:
        """Make room for a total of ``num_tokens`` tokens."""
        self.pages.extend(self.pool.allocate(self.num_missing(num_tokens)))

    def truncate(self, num_tokens: int) -> None:
        """Release the pages beyond those that ``num_tokens`` tokens need."""
        needed = -(-num_tokens // self.page_size)
        if len(self.pages) > needed:
            self.pool.release(self.pages[needed:])
            del self.pages[needed:]

    def adopt(self, pages: Sequence[int]) -> None:
        """Start with shared pages from a prefix cache hit."""
        assert not self.pages, "only an empty table can adopt a prefix"
        self.pool.share(pages)
        self.pages.extend(pages)
        self.num_published = len(pages)

    def publish(self, hashes: Sequence[bytes], num_computed: int) -> None:
        """Publish the pages filled by ``num_computed`` tokens. ``hashes`` has one entry per full page."""
        full = num_computed // self.page_size
        for index in range(self.num_published, full):
            self.pool.publish(self.pages[index], hashes[index])
        self.num_published = max(self.num_published, full)

    def release(self) -> None:
        """Release all pages."""
        self.pool.release(self.pages)
        self.pages = []
        self.num_published = 0
