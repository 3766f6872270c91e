"""Drafters that know the answer, know it up to a depth, or know nothing at all: none may change a token."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq

import numpy as np

from engine.config import TreeLimits
from engine.draft.branches import Branches
from engine.draft.candidates import Candidates
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.pages import DraftPages
from engine.plan import Span
from engine.runner import Outcome
from engine.sequence import Sequence
from tests.engine.trees import Nodes, candidates_of

Answers = Mapping[str, Seq[int]]
"""The right output of each request."""

Shape = Callable[[random.Random, TreeLimits], list[int]]
"""Draws the parents of one tree within these limits."""


class Adversary:
    """Proposes ``nodes`` of each sequence, and needs nothing to do so."""

    kind = "adversary"
    pages: DraftPages | None = None
    branches: Branches | None = None

    def nodes(self, sequence: Sequence, limits: TreeLimits) -> Nodes:
        raise NotImplementedError

    def keep(self, spans: Seq[Span], outcome: Outcome) -> None:
        pass

    def ready(self, sequence: Sequence, num_steps: int, topk: int) -> bool:
        return True

    def num_behind(self, sequence: Sequence) -> int:
        return 0

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        return candidates_of([self.nodes(s, s.tree_limits(num_steps, topk)) for s in sequences])

    def follow(self, running: Seq[Sequence]) -> None:
        pass

    def forget(self, sequence: Sequence) -> None:
        pass


class Oracle(Adversary):
    """A chain of the right tokens, wrong at depth ``wrong_at[request_id]`` alone."""

    def __init__(self, answers: Answers, wrong_at: Mapping[str, int] | None = None) -> None:
        self._answers, self._wrong_at = answers, wrong_at or {}

    def nodes(self, sequence: Sequence, limits: TreeLimits) -> Nodes:
        chain = list(right_tokens(self._answers, sequence)[: limits.num_steps])
        wrong = self._wrong_at.get(sequence.request_id, 0)
        if 1 <= wrong <= len(chain):
            chain[wrong - 1] += 1 if chain[wrong - 1] == 0 else -1
        return [(token_id, i - 1) for i, token_id in enumerate(chain)]


class Garbage(Adversary):
    """Random tokens in trees of a shape, equal siblings among them."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        self._shape, self._vocab_size, self._rng = shape, vocab_size, random.Random(0)

    def nodes(self, sequence: Sequence, limits: TreeLimits) -> Nodes:
        parents = self._shape(self._rng, limits)
        return [(self._rng.randrange(self._vocab_size), parent) for parent in parents]


class Scattered(Garbage):
    """Garbage with the right tokens along one random path: what is accepted lies here and there."""

    def __init__(self, shape: Shape, vocab_size: int, answers: Answers) -> None:
        super().__init__(shape, vocab_size)
        self._answers = answers

    def nodes(self, sequence: Sequence, limits: TreeLimits) -> Nodes:
        nodes = super().nodes(sequence, limits)
        for token_id, node in right_path(self._answers, sequence, [p for _, p in nodes], self._rng):
            nodes[node] = (token_id, nodes[node][1])
        return nodes


class SteeredEagle(EagleDrafter):
    """An EAGLE draft whose candidates are made right along one random path, once they are grown: its own
    work goes on as always, and accepted nodes are scattered.
    """

    answers: Answers
    seed = 0
    unsteered: Candidates

    def propose(self, sequences: Seq[Sequence], num_steps: int, topk: int) -> Candidates:
        candidates = self.unsteered = super().propose(sequences, num_steps, topk)
        token_ids, rng = candidates.token_ids.copy(), random.Random(self.seed + sequences[0].num_tokens)
        for row, sequence in enumerate(sequences):
            real = np.isfinite(candidates.scores[row])
            parents = np.where(real, candidates.parents[row], -2).tolist()
            for token_id, node in right_path(self.answers, sequence, parents, rng):
                token_ids[row, node] = token_id
        return Candidates(token_ids, candidates.parents, candidates.depths, candidates.scores)


def right_tokens(answers: Answers, sequence: Sequence) -> Seq[int]:
    """What the output of ``sequence`` goes on with."""
    return answers[sequence.request_id][sequence.num_output_tokens :]


def right_path(
    answers: Answers, sequence: Sequence, parents: list[int], rng: random.Random
) -> list[tuple[int, int]]:
    """(right token, node) down from the root, each node drawn among the last one's children."""
    path, at = [], -1
    for token_id in right_tokens(answers, sequence):
        children = [node for node, parent in enumerate(parents) if parent == at]
        if not children:
            break
        at = rng.choice(children)
        path.append((token_id, at))
    return path


def chain(rng: random.Random, limits: TreeLimits) -> list[int]:
    return list(range(-1, min(limits.num_steps, limits.num_draft_tokens) - 1))


def wide(rng: random.Random, limits: TreeLimits) -> list[int]:
    """Children of the root alone."""
    return [-1] * min(limits.topk, limits.num_draft_tokens)


def full(rng: random.Random, limits: TreeLimits) -> list[int]:
    """As many nodes as the limits allow, each below a random one."""
    return _random_parents(rng, limits, limits.num_draft_tokens)


def mixed(rng: random.Random, limits: TreeLimits) -> list[int]:
    """Another size each time, nothing among them."""
    return _random_parents(rng, limits, rng.choice([0, 1, 2, 5, 20, limits.num_draft_tokens]))


def _random_parents(rng: random.Random, limits: TreeLimits, count: int) -> list[int]:
    parents: list[int] = []
    depths, children = {-1: 0}, {-1: 0}
    while len(parents) < min(count, limits.num_draft_tokens):
        open_ones = [n for n in depths if depths[n] < limits.num_steps and children[n] < limits.topk]
        if not open_ones:
            break
        parent, node = rng.choice(open_ones), len(parents)
        parents.append(parent)
        depths[node], children[node] = depths[parent] + 1, 0
        children[parent] += 1
    return parents
