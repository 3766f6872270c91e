"""Cache of picture embeddings, bounded by visual tokens. No torch: values are opaque.

An entry is pinned while a sequence still has to run tokens of that picture; unpinned entries are evicted,
least recently used first, when room is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(slots=True)
class _Entry(Generic[Value]):
    num_tokens: int
    value: Value | None = None
    users: set[str] = field(default_factory=set)


class EncoderCache(Generic[Value]):
    """Cache keyed by picture hash and cache salt. Call ``reserve`` before ``put``, and ``pin`` before use."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self._entries: OrderedDict[bytes, _Entry[Value]] = OrderedDict()  # least recently used first
        self._num_tokens = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def can_reserve(self, num_tokens: int) -> bool:
        pinned = sum(entry.num_tokens for entry in self._entries.values() if entry.users)
        return pinned + num_tokens <= self.capacity_tokens

    def reserve(self, key: bytes, num_tokens: int, user: str) -> None:
        """Make room for a picture that this step will encode, pinned by ``user``."""
        for old in [k for k, entry in self._entries.items() if not entry.users]:
            if self._num_tokens + num_tokens <= self.capacity_tokens:
                break
            self._drop(old)
        assert self._num_tokens + num_tokens <= self.capacity_tokens, "reserve without can_reserve"
        self._entries[key] = _Entry(num_tokens, users={user})
        self._num_tokens += num_tokens

    def pin(self, key: bytes, user: str) -> None:
        self._entries[key].users.add(user)
        self._entries.move_to_end(key)

    def unpin(self, key: bytes, user: str) -> None:
        """Unpin an entry for ``user``. Unknown pairs are ignored, since a failed encoding drops its entry."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.users.discard(user)
            if entry.value is None and not entry.users:
                self._drop(key)  # reserved but never filled

    def put(self, key: bytes, value: Value) -> None:
        self._entries[key].value = value

    def get(self, key: bytes) -> Value:
        value = self._entries[key].value
        assert value is not None, "an entry is used before it is encoded"
        return value

    def drop(self, key: bytes) -> None:
        """Drop an entry whose encoding failed, even if it is pinned."""
        if key in self._entries:
            self._drop(key)

    def check(self, users: dict[bytes, set[str]]) -> None:
        """Assert that exactly ``users`` hold pins and that the token count is right."""
        assert {k: e.users for k, e in self._entries.items() if e.users} == users, "encoder pins drifted"
        assert self._num_tokens == sum(entry.num_tokens for entry in self._entries.values())
        assert self._num_tokens <= self.capacity_tokens

    def _drop(self, key: bytes) -> None:
        self._num_tokens -= self._entries.pop(key).num_tokens
