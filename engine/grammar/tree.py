"""Grammars over draft trees: pruning of candidates, and computing masks ahead of the walk. No torch."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace

import numpy as np

from engine.draft.candidates import Candidates, DraftTree
from engine.grammar.grammar import GrammarState
from engine.plan import Span


def prune(candidates: Candidates, grammars: Seq[GrammarState | None]) -> Candidates:
    """Remove the candidates that a sequence's grammar forbids, and with them all their descendants."""
    scores = candidates.scores.copy()
    for row, grammar in enumerate(grammars):
        if grammar is None:
            continue
        (real,) = np.isfinite(scores[row]).nonzero()
        index = {-1: -1} | {int(old): new for new, old in enumerate(real)}
        parents = [index[parent] for parent in candidates.parents[row, real].tolist()]
        allowed = grammar.allowed(candidates.token_ids[row, real].tolist(), parents)
        scores[row, real[~np.array(allowed, np.bool_)]] = -np.inf
    return replace(candidates, scores=scores)


def fill_ahead(spans: Seq[Span], done: Callable[[], bool]) -> None:
    """Compute masks that the walk may need, until ``done``: those of all roots, then of the trees' nodes.

    Masks that are still missing are computed when a walk needs them.
    """
    grammars = [(span, span.sequence.grammar) for span in spans if span.samples]
    root: tuple[int, ...] = ()
    paths = [(grammar, root) for _, grammar in grammars if grammar is not None]
    for span, grammar in grammars:
        if grammar is not None and span.tree is not None:
            paths += [(grammar, path) for path in paths_of(span.tree)]
    for grammar, path in paths:
        if done():
            return
        grammar.look_ahead(path)


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    """Return, for each node, the tokens on the path from the root to it, its own last."""
    paths: list[tuple[int, ...]] = []
    for token_id, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token_id))
    return paths
