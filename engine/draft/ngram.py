"""Training-free drafting by n-gram look-up: proposes what followed the same few tokens before. No torch.

There are two sources: the request's own prompt and output, and a bounded memory of recent outputs of other
requests with the same cache salt. Text of one salt is never proposed to another.

A match is an earlier occurrence of the last n tokens, for n from ``max_ngram`` down to ``min_ngram``. The
continuations of the latest few matches are merged into a tree. A match has the weight
2 ** (length - min_ngram). If the matches that agree on a token have the total weight W, and those that pass
through its parent T, the token has probability W / (T + 1): longer matches and more agreement make it
likelier, and a single match of two tokens is an even bet. Going down a path lengthens the matches along it.

    lookup = NgramLookup(never=frozenset({image_token_id}))
    lookup.begin("a", num_prompt=len(prompt_token_ids), salt="")
    lookup.extend("a", prompt_token_ids)
    candidates = lookup.propose(["a"], [TreeLimits(num_steps=6, topk=2, num_draft_tokens=16)])
    lookup.extend("a", accepted_token_ids)
    lookup.end("a", remember=True)
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.config import TreeLimits
from engine.draft.candidates import Candidates
from engine.draft.ngram_index import NgramIndex

SEPARATOR = -1  # between remembered outputs; not a token, so that no match and no path crosses it


@dataclass(slots=True)
class _Request:
    salt: str
    num_prompt: int
    own: NgramIndex
    only_own: bool


@dataclass(slots=True, frozen=True)
class _Match:
    """A match of ``length`` tokens; ``continuation``: what followed, up to a token never proposed."""

    length: int
    continuation: list[int]


@dataclass(slots=True, frozen=True)
class _Node:
    token_id: int
    parent: int
    depth: int
    score: float


class NgramLookup:
    """Drafts for running requests. Costs a few microseconds per node and about 0.6 KB per token of context.

    ``never``: tokens that are never proposed (image placeholders); a path ends before them.
    ``memory_tokens``: the most tokens remembered of ended requests, over all salts. ``max_matches``: the most
    matches considered. ``min_probability``: paths less likely than this are not proposed.
    """

    def __init__(
        self,
        *,
        never: frozenset[int] = frozenset(),
        max_ngram: int = 4,
        min_ngram: int = 2,
        memory_tokens: int = 1 << 16,
        max_matches: int = 8,
        min_probability: float = 0.02,
    ) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self._max, self._min = max_ngram, min_ngram
        self._stops = never | {SEPARATOR}
        self._max_matches = max_matches
        self._floor = math.log(min_probability)
        self._capacity = memory_tokens
        self._requests: dict[str, _Request] = {}
        self._memory: dict[str, NgramIndex] = {}  # by salt
        self._remembered: deque[tuple[str, int]] = deque()  # (salt, tokens held) of each output, oldest first
        self._num_remembered = 0

    @property
    def num_remembered_tokens(self) -> int:
        """The number of tokens in memory, including separators and the last prompt tokens of each output."""
        return self._num_remembered

    @property
    def num_prompt_tokens(self) -> int:
        """The number of prompt tokens of all running requests, including those that are still to come."""
        return sum(request.num_prompt for request in self._requests.values())

    def num_tokens(self, request_id: str) -> int:
        """Return how many tokens of a running request are known."""
        return len(self._requests[request_id].own)

    def begin(self, request_id: str, *, num_prompt: int, salt: str, only_own: bool = False) -> None:
        """Start a request, whose first ``num_prompt`` tokens are its prompt; all tokens come with ``extend``.

        With ``only_own``, text of other requests is not proposed to it. Raises ``ValueError`` if the id is
        already running.
        """
        if request_id in self._requests:
            raise ValueError(f"request {request_id!r} has already begun")
        self._requests[request_id] = _Request(salt, num_prompt, NgramIndex(self._min, self._max), only_own)

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Append to a request's text. Raises ``KeyError`` for an id that is not running."""
        self._requests[request_id].own.extend(token_ids)

    def end(self, request_id: str, remember: bool) -> None:
        """End a request; with ``remember``, keep its output for later requests with the same salt."""
        request = self._requests.pop(request_id)
        if remember:
            self._remember(request)

    def propose(self, request_ids: Sequence[str], limits: Sequence[TreeLimits]) -> Candidates:
        """Return the candidates of each request, best first; C is the most that any of them has, possibly 0.

        Raises ``KeyError`` for an id that is not running.
        """
        trees = [
            self._grow(self._matches(self._requests[request_id], limit.num_steps), limit)
            for request_id, limit in zip(request_ids, limits, strict=True)
        ]
        shape = (len(trees), max(map(len, trees), default=0))
        token_ids, parents = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
        depths, scores = np.zeros(shape, np.int64), np.full(shape, -np.inf, np.float32)
        for row, tree in enumerate(trees):
            token_ids[row, : len(tree)] = [node.token_id for node in tree]
            parents[row, : len(tree)] = [node.parent for node in tree]
            depths[row, : len(tree)] = [node.depth for node in tree]
            scores[row, : len(tree)] = [node.score for node in tree]
        return Candidates(token_ids, parents, depths, scores)

    def _matches(self, request: _Request, num_steps: int) -> list[_Match]:
        """Return at most ``max_matches``: longest first, then own text before memory, then latest first."""
        own = request.own
        memory = None if request.only_own else self._memory.get(request.salt)
        found: list[_Match] = []
        seen: set[tuple[bool, int]] = set()
        for length in range(min(self._max, len(own)), self._min - 1, -1):
            tail = own.tail(length)
            for index in (own, memory) if memory is not None else (own,):
                for end in index.occurrences(tail):
                    if len(found) == self._max_matches:
                        return found
                    if (place := (index is own, end)) in seen or (index is own and end == own.last):
                        continue
                    seen.add(place)
                    following = index.following(end, num_steps)
                    if index is own and following:
                        following = _run_on(following, num_steps)
                    found.append(_Match(length, self._cut(following)))
        return found

    def _cut(self, continuation: list[int]) -> list[int]:
        if self._stops.isdisjoint(continuation):
            return continuation
        return continuation[: next(i for i, token in enumerate(continuation) if token in self._stops)]

    def _grow(self, matches: list[_Match], limit: TreeLimits) -> list[_Node]:
        """Grow a tree, likeliest nodes first, so that a parent comes before its children."""
        nodes: list[_Node] = []
        waiting: list[tuple[float, int, _Node, list[_Match]]] = []  # a heap; the number breaks ties
        number = 0

        def add_children(parent: int, depth: int, score: float, matches: list[_Match]) -> None:
            nonlocal number
            for token_id, gain, agreeing in self._children(matches, depth, limit.topk):
                if score + gain >= self._floor:
                    node = _Node(token_id, parent, depth + 1, score + gain)
                    heapq.heappush(waiting, (-node.score, number, node, agreeing))
                    number += 1

        add_children(-1, 0, 0.0, matches)
        while waiting and len(nodes) < limit.num_draft_tokens:
            _, _, node, agreeing = heapq.heappop(waiting)
            nodes.append(node)
            if node.depth < limit.num_steps:
                add_children(len(nodes) - 1, node.depth, node.score, agreeing)
        return nodes

    def _children(
        self, matches: list[_Match], depth: int, topk: int
    ) -> list[tuple[int, float, list[_Match]]]:
        """Return a node's likeliest children: (token, log-probability given the parent, agreeing matches)."""
        agreeing: dict[int, list[_Match]] = {}
        weights: dict[int, int] = {}
        for match in matches:
            if depth < len(match.continuation):
                token_id = match.continuation[depth]
                weight = 1 << (min(match.length + depth, self._max) - self._min)
                agreeing.setdefault(token_id, []).append(match)
                weights[token_id] = weights.get(token_id, 0) + weight
        total = sum(weights.values()) + 1
        best = sorted(weights, key=weights.__getitem__, reverse=True)[:topk]  # stable: earlier matches first
        return [(token_id, math.log(weights[token_id] / total), agreeing[token_id]) for token_id in best]

    def _remember(self, request: _Request) -> None:
        """Keep the output, preceded by the prompt's last tokens, so that an answer's start can be matched.

        SEPARATOR …  p p p p  o o o o o o       ``max_ngram`` places for these tokens, padded if there are
                           ^ from here on       fewer; only n-grams that end here or later are indexed, so
                                                the prompt tokens themselves are never proposed
        """
        token_ids = request.own.token_ids
        start = max(request.num_prompt, len(token_ids) - (self._capacity - self._max - 1))
        if start >= len(token_ids):
            return
        lead = token_ids[max(0, start - self._max) : start]
        text = [SEPARATOR] * (1 + self._max - len(lead)) + lead + token_ids[start:]
        index = self._memory.setdefault(request.salt, NgramIndex(self._min, self._max))
        index.extend(text, skip=self._max)
        self._remembered.append((request.salt, len(text)))
        self._num_remembered += len(text)
        while self._num_remembered > self._capacity:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        salt, num_tokens = self._remembered.popleft()
        self._num_remembered -= num_tokens
        index = self._memory[salt]
        index.forget(num_tokens)
        if not len(index):
            del self._memory[salt]


def _run_on(following: list[int], num_steps: int) -> list[int]:
    """Extend a continuation that reaches the end of the text by repeating it: repetitive text repeats."""
    if len(following) == num_steps:
        return following
    return (following * -(-num_steps // len(following)))[:num_steps]
