"""Storage for target features and embeddings that the draft has not seen yet, and for those at page ends.

Every step stores here the features (hidden states after the final norm) of the tokens that it computed. Those
of a sequence wait until the draft catches up, in one pass. The feature of the last token of each full page is
kept with the page, so that a sequence that starts from cached pages has the one it needs. Works on tensors
and positions; knows nothing of the draft's weights or of trees.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from engine.draft.kv import DraftKV
from engine.plan import Span
from engine.sequence import Sequence

MAX_WAITING = 8192
"""Maximum number of tokens of one sequence whose features wait although the draft could see them.

As many more may wait that it cannot see yet, because the gate has not chosen. There must be room for pictures
of 2,880 tokens, which a compressor takes as a whole.
"""
MAX_WAITING_IN_ALL = 32768
"""The same limit for all sequences together. On a GPU, memory is reserved for it (:mod:`engine.memory`)."""


@dataclass(slots=True)
class _Waiting:
    """The waiting features of one sequence.

    ``features``: those of tokens ``first - 1 .. num_computed``, in pieces ``[*, size]``. ``embeddings``:
    those of the prompt tokens among them, as (first token, ``[*, hidden]``), since those of pictures cannot
    be looked up by token id. ``image_scores``: those of the pictures among them, by key, if the encoder gave
    any.
    """

    first: int
    features: list[torch.Tensor] = field(default_factory=list)
    embeddings: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    image_scores: dict[bytes, torch.Tensor] = field(default_factory=dict)
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = sum(map(len, self.features))

    def add(self, features: torch.Tensor) -> None:
        """Add the features of the next tokens. Plain decoding adds hundreds of pieces, one per step."""
        self.features.append(features)
        self.num_tokens += len(features)

    def joined(self) -> torch.Tensor:
        if len(self.features) > 1:
            self.features = [torch.cat(self.features)]
        return self.features[0]


@dataclass(slots=True, frozen=True)
class CatchUp:
    """The tokens ``start .. end`` of one sequence, which the draft is to process next.

    ``features``: ``[end - start, size]``, each that of the preceding token. For the other fields see
    ``_Waiting``.
    """

    sequence: Sequence
    start: int
    end: int
    features: torch.Tensor
    embeddings: list[tuple[int, torch.Tensor]]
    image_scores: dict[bytes, torch.Tensor]

    @property
    def count(self) -> int:
        return self.end - self.start


class FeatureStore:
    """Holds the features that wait for the draft.

    ``page_ends``: ``[num_pages, size]``, the feature of the last token of each of the target's pages.
    """

    def __init__(
        self, num_pages: int, page_size: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.page_size = page_size
        self.page_ends = torch.zeros(num_pages, size, dtype=dtype, device=device)
        self._waiting: weakref.WeakKeyDictionary[DraftKV, _Waiting] = weakref.WeakKeyDictionary()
        self._room = MAX_WAITING_IN_ALL

    @property
    def is_crowded(self) -> bool:
        """Whether half of what may wait in all does."""
        return self._room < MAX_WAITING_IN_ALL // 2

    @property
    def fair_share(self) -> int:
        """Tokens that each sequence may have waiting while it is crowded: about half of the average."""
        return max(1, MAX_WAITING_IN_ALL // (4 * max(1, len(self._waiting))))

    def keep(
        self,
        spans: Seq[Span],
        paths: Seq[Seq[int]],
        features: torch.Tensor,
        embeddings: torch.Tensor,
        image_scores: Mapping[bytes, torch.Tensor],
    ) -> None:
        """Store what a step computed, before its tokens are committed.

        ``features`` ``[N, size]`` and ``embeddings`` ``[N, hidden]`` are those of the row; ``paths``: the
        accepted nodes of each span's tree. Takes one gather and one scatter for all spans.
        """
        rows, positions, pages = _accepted_rows(spans, paths, self.page_size)
        kept = (
            features if len(rows) == len(features) else features[torch.from_numpy(rows).to(features.device)]
        )
        ends = np.flatnonzero(positions % self.page_size == self.page_size - 1)
        first, row = 0, 0
        self._room = MAX_WAITING_IN_ALL - sum(waiting.num_tokens for waiting in self._waiting.values())
        for span, path in zip(spans, paths, strict=True):
            count = span.length + len(path)
            own = embeddings[row : row + span.length]
            self._wait(span, kept[first : first + count], own, image_scores)
            first, row = first + count, row + span.num_rows
        if len(ends):  # after the sequences have read what they need of the old page ends
            index = torch.from_numpy(ends).to(features.device)
            self.page_ends.index_copy_(0, torch.from_numpy(pages[ends]).to(features.device), kept[index])

    def take(self, sequence: Sequence, end: int) -> CatchUp:
        """Remove and return what the draft of ``sequence`` needs for its tokens before ``end``, at most
        ``draft_reach``. It must process all of them.
        """
        draft = sequence.draft
        assert draft is not None
        start = draft.num_seen
        waiting = self._waiting[draft]
        features = waiting.joined()
        rest = features[end - waiting.first :]
        later = [(first, piece) for first, piece in waiting.embeddings if first + len(piece) > end]
        # A view would keep the removed features in memory.
        own = [rest.clone()] if len(rest) else []
        self._waiting[draft] = _Waiting(end, own, later, waiting.image_scores)
        self._room += len(features) - len(rest)
        taken = features[start - waiting.first : end - waiting.first]
        return CatchUp(sequence, start, end, taken, waiting.embeddings, waiting.image_scores)

    def is_full(self, sequence: Sequence) -> bool:
        """Whether so much waits behind an undecided picture that the draft must proceed."""
        return sequence.num_computed - sequence.draft_reach > MAX_WAITING

    def features_of(self, sequence: Sequence, start: int, end: int) -> torch.Tensor:
        """Return the features ``[end - start, size]`` of computed tokens that the draft has not seen."""
        assert sequence.draft is not None
        waiting = self._waiting[sequence.draft]
        first = waiting.first - 1
        return waiting.joined()[start - first : end - first]

    def _wait(
        self,
        span: Span,
        features: torch.Tensor,
        embeddings: torch.Tensor,
        image_scores: Mapping[bytes, torch.Tensor],
    ) -> None:
        """Keep what a span computed for its draft, or give up the draft if there is no room."""
        draft = span.sequence.draft
        if draft is None or draft.given_up:
            return
        waiting = self._waiting.get(draft)
        if waiting is None:
            waiting = self._waiting[draft] = _Waiting(span.start, [self._before(span)])
            self._room -= waiting.num_tokens
        waiting.add(features.clone())  # a view would keep the whole step's row in memory
        self._room -= len(features)
        if span.start < span.sequence.num_prompt_tokens:
            waiting.embeddings.append((span.start, embeddings.clone()))
            keys = [key for key, _ in span.sequence.images_in(span.start, span.end)]
            waiting.image_scores |= {key: image_scores[key] for key in keys if key in image_scores}
        # Tokens behind an undecided picture wait for the gate. They do not count here, since ``is_full`` ends
        # that wait in time.
        end = draft.reach(span.end) if draft.undecided else span.end
        if end - draft.num_seen > MAX_WAITING or self._room < 0:
            draft.given_up = True
            self._room += self._waiting.pop(draft).num_tokens

    def _before(self, span: Span) -> torch.Tensor:
        """Return the feature ``[1, size]`` of the token before a sequence's first span; zeros if none."""
        if span.start == 0:
            return self.page_ends.new_zeros(1, self.page_ends.shape[1])
        assert span.start % self.page_size == 0, "a sequence starts at a page's end"
        page = span.sequence.table.pages[span.start // self.page_size - 1]
        return self.page_ends[page : page + 1].clone()


def _accepted_rows(
    spans: Seq[Span], paths: Seq[Seq[int]], page_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the accepted rows of the step, their positions in their sequences, and the pages of these."""
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
