"""Target features and embeddings that the draft has not seen yet, and those at page ends that stay.

Every step leaves here the features (hidden states after the final norm) of the tokens that it computed. A
sequence's wait until the draft catches up with it, in one pass; the feature of the last token of each full
page stays beside the page, so that a sequence that starts from cached pages has the one it needs. Knows
tensors and positions; nothing of the draft's weights or of trees.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.draft_kv import DraftKV
from engine.scheduler import Span
from engine.sequence import Sequence

MAX_WAITING = 2048
"""Tokens of one sequence whose features are kept for a draft that has not seen them."""


@dataclass(slots=True)
class _Waiting:
    """Features of tokens ``num_seen - 1 .. num_computed``, in pieces ``[*, size]``, and the embeddings of
    prompt tokens among them as (first token, ``[*, hidden]``): a picture's cannot be looked up by token id.
    """

    features: list[torch.Tensor] = field(default_factory=list)
    embeddings: list[tuple[int, torch.Tensor]] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class CatchUp:
    """What the draft is to see of one sequence: tokens ``num_seen .. num_seen + count``.

    ``features``: ``[count, size]``, of the tokens before each; ``embeddings``: see ``_Waiting``.
    """

    sequence: Sequence
    count: int
    features: torch.Tensor
    embeddings: list[tuple[int, torch.Tensor]]


class FeatureStore:
    """``page_ends``: ``[num_pages, size]``, the feature of the last token of each of the target's pages."""

    def __init__(
        self, num_pages: int, page_size: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.page_size = page_size
        self.page_ends = torch.zeros(num_pages, size, dtype=dtype, device=device)
        self._waiting: weakref.WeakKeyDictionary[DraftKV, _Waiting] = weakref.WeakKeyDictionary()

    def keep(
        self,
        spans: Seq[Span],
        paths: Seq[Seq[int]],
        features: torch.Tensor,
        embeddings: torch.Tensor,
    ) -> None:
        """Take what a step computed, before its tokens are committed.

        ``features`` ``[N, size]`` and ``embeddings`` ``[N, hidden]`` are the row's; ``paths``: the accepted
        nodes of each span's tree. One gather and one scatter for all spans.
        """
        rows, positions, pages = _accepted_rows(spans, paths, self.page_size)
        kept = (
            features if len(rows) == len(features) else features[torch.from_numpy(rows).to(features.device)]
        )
        ends = np.flatnonzero(positions % self.page_size == self.page_size - 1)
        first, row = 0, 0
        for span, path in zip(spans, paths, strict=True):
            count = span.length + len(path)
            if span.sequence.draft is not None:
                self._wait(span, kept[first : first + count], embeddings[row : row + span.length])
            first, row = first + count, row + span.num_rows
        if len(ends):  # after the sequences took what they need of older page ends
            index = torch.from_numpy(ends).to(features.device)
            self.page_ends.index_copy_(0, torch.from_numpy(pages[ends]).to(features.device), kept[index])

    def num_waiting(self, sequence: Sequence) -> int:
        """Tokens that the draft could catch up with now."""
        return _reach(sequence) - sequence.draft.num_seen if sequence.draft is not None else 0

    def take(self, sequence: Sequence) -> CatchUp:
        """Hand out what waits for the draft of ``sequence``, which then must see all of it."""
        draft = sequence.draft
        assert draft is not None
        waiting = self._waiting[draft]
        count = _reach(sequence) - draft.num_seen
        features = waiting.features[0] if len(waiting.features) == 1 else torch.cat(waiting.features)
        taken = CatchUp(sequence, count, features[:count], waiting.embeddings)
        self._waiting[draft] = _Waiting([features[count:]] if count < len(features) else [])
        return taken

    def _wait(self, span: Span, features: torch.Tensor, embeddings: torch.Tensor) -> None:
        draft = span.sequence.draft
        if draft is None or draft.given_up:
            return
        waiting = self._waiting.get(draft)
        if waiting is None:
            waiting = self._waiting[draft] = _Waiting([self._before(span)])
        waiting.features.append(features.clone())  # a view would keep the whole step's row in memory
        if span.start < span.sequence.num_prompt_tokens:
            waiting.embeddings.append((span.start, embeddings.clone()))
        if span.end - draft.num_seen > MAX_WAITING:
            draft.given_up = True
            del self._waiting[draft]

    def _before(self, span: Span) -> torch.Tensor:
        """The feature of the token before a sequence's first span ``[1, size]``; zeros at the beginning."""
        if span.start == 0:
            return self.page_ends.new_zeros(1, self.page_ends.shape[1])
        assert span.start % self.page_size == 0, "a sequence starts at a page's end"
        page = span.sequence.table.pages[span.start // self.page_size - 1]
        return self.page_ends[page : page + 1].clone()


def _reach(sequence: Sequence) -> int:
    """How many tokens the draft can have seen: those whose own embedding is known, and the feature of the
    token before. The newest token of a growing sequence is looked up; a prompt's next may be a picture's.
    """
    return sequence.num_computed + (1 if sequence.can_draft else 0)


def _accepted_rows(
    spans: Seq[Span], paths: Seq[Seq[int]], page_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the step that count, their positions in their sequences, and the pages that hold them."""
    rows, positions, pages, first = [], [], [], 0
    for span, path in zip(spans, paths, strict=True):
        own = np.arange(span.length + len(path))
        nodes = np.asarray(path, dtype=np.int64)
        rows.append(np.concatenate([own[: span.length], span.length + nodes]) + first)
        positions.append(span.start + own)
        table = np.asarray(span.sequence.table.pages, dtype=np.int64)
        pages.append(table[positions[-1] // page_size])
        first += span.num_rows
    return np.concatenate(rows), np.concatenate(positions), np.concatenate(pages)
