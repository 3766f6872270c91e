"""Runs the draft over what the target computed: every token once, with true features, pictures compressed.

Features wait in the feature store until a tree is to be grown or a long prompt has accumulated. A picture
whose branch the gate is to choose waits for the end of the prompt, if that is not too far off, because the
question usually follows the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch

from compressors.gate import QUESTION_TOKENS
from engine.attention import prepare
from engine.draft.branches import Branches
from engine.draft.features import FeatureStore
from engine.draft.kv import DraftKV
from engine.draft.model import DraftModel
from engine.draft.pages import DraftPages
from engine.draft.rows import DraftRows
from engine.kv_cache import KVCache
from engine.sequence import Sequence

CATCH_UP_TOKENS = 256
"""Number of tokens that may wait for the draft of an unfinished prompt, or of any sequence under pressure."""


class Follower:
    """Keeps the draft's KV up to date with the target.

    ``embed`` returns the target's embeddings ``[N, hidden]`` of token ids ``[N]``. ``cache``: the KV cache
    behind ``pages``.
    """

    def __init__(
        self,
        model: DraftModel,
        branches: Branches,
        pages: DraftPages,
        cache: KVCache,
        features: FeatureStore,
        embed: Callable[[torch.Tensor], torch.Tensor],
        *,
        caching: bool,
    ) -> None:
        self.features = features
        self._model, self._branches, self._pages = model, branches, pages
        self._cache, self._caching = cache, caching
        self._rows = DraftRows(model, branches, embed, pages.page_size)

    def follow(self, sequence: Sequence) -> None:
        """Catch up with an unfinished prompt, so that little is left at its end. Also catch up with answers
        that are decoded plainly, before so many features wait that drafts have to be given up.

        This may take pages that the next sequence counted on.
        """
        draft = sequence.draft
        if draft is None:
            return
        self._decide(sequence, draft)
        # An answer's newest token is left: if this step grows a tree, that begins with the token's state.
        end = draft.reach(sequence.num_computed)
        most = CATCH_UP_TOKENS
        if self.features.is_crowded:
            most = min(most, self.features.fair_share)
        elif sequence.can_draft:  # nothing presses, and ``propose`` catches up with it
            return
        if end - draft.num_seen >= most and can_follow(sequence):
            self.catch_up([sequence], [end])

    @torch.inference_mode()
    def catch_up(self, sequences: Seq[Sequence], ends: Seq[int]) -> torch.Tensor:
        """Process the waiting tokens before each sequence's end; return the last states ``[S, hidden]`` of
        sequences that had any.
        """
        for sequence, end in zip(sequences, ends, strict=True):
            draft = draft_of(sequence)
            draft.table.reserve(draft.num_slots + draft.slots_to(end))
            self._copy_loan(draft)
        taken = [self.features.take(*one) for one in zip(sequences, ends, strict=True)]
        row = self._rows.build(taken)
        states = torch.empty(0)
        if row is not None:
            batch, inputs = row
            last_rows = torch.tensor([start - 1 for start in batch.span_starts[1:]], device=inputs.device)
            states = self._model.forward(prepare(batch, self._cache), inputs)[last_rows]
        for one in taken:
            draft = draft_of(one.sequence)
            for block in draft.blocks_to(one.end):
                self._pages.took_in(block)
            draft.saw(one.end, one.sequence.token_ids, caching=self._caching)
        return states

    def _copy_loan(self, draft: DraftKV) -> None:
        """Copy the slots borrowed from a shared page before they are first used."""
        if not draft.loan.pages:
            return
        size, count = self._pages.page_size, draft.num_slots % self._pages.page_size
        slots = torch.arange(count, device=self._model.device)
        own = draft.table.pages[draft.num_slots // size]
        self._cache.move(slots + draft.loan.pages[0] * size, slots + own * size)
        draft.loan.release()

    def _decide(self, sequence: Sequence, draft: DraftKV) -> None:
        """Choose the branches of pictures that are left to the gate, once the whole prompt is computed.

        If too much is waiting before that, the pictures that have begun take the strongest branch.
        """
        if not draft.undecided or draft.given_up:
            return
        through = sequence.num_computed >= sequence.num_prompt_tokens
        if not through and not self.features.is_full(sequence):
            return
        self._pages.decide(sequence)  # the gate may have chosen for the same picture in another request
        if through and draft.undecided:
            self._pages.decide(sequence, self._choose(sequence))
        elif not through:
            begun = [view for view in draft.undecided if view.image.start < sequence.num_computed]
            self._pages.decide(sequence, [self._branches.strongest(view) for view in begun])

    def _choose(self, sequence: Sequence) -> list[str]:
        """Return the gate's choice for each undecided picture, from the features of it and the question."""
        undecided = draft_of(sequence).undecided
        first, end = undecided[0].image.start, sequence.num_prompt_tokens
        features = self.features.features_of(sequence, first, end)
        visual, rows = np.zeros(end - first, np.bool_), []
        for view in undecided:
            rows.append(view.image.places - first)
            visual[rows[-1]] = True
        text = np.flatnonzero(~visual)
        questions = [text[text >= view.image.end - first][-QUESTION_TOKENS:] for view in undecided]
        pictures = torch.stack([_mean(features, own) for own in rows])
        return self._branches.choose(pictures, torch.stack([_mean(features, own) for own in questions]))


def draft_of(sequence: Sequence) -> DraftKV:
    assert sequence.draft is not None
    return sequence.draft


def num_behind(sequence: Sequence) -> int:
    """Return how many slots the draft could fill now."""
    return draft_of(sequence).slots_to(sequence.draft_reach) if sequence.draft is not None else 0


def can_follow(sequence: Sequence, num_nodes: int = 0) -> bool:
    """Whether the draft can catch up: nothing is lost or undecided, and there are pages, also for a tree."""
    draft = sequence.draft
    if draft is None or draft.given_up or (sequence.can_draft and draft.undecided):
        return False
    return draft.table.can_reserve(draft.num_slots + num_behind(sequence) + num_nodes)


def reserve(sequence: Sequence, num_nodes: int) -> bool:
    """Reserve the pages that ``can_follow`` requires; return ``False`` if they are no longer available."""
    if not can_follow(sequence, num_nodes):
        return False
    draft = draft_of(sequence)
    draft.table.reserve(draft.num_slots + num_behind(sequence) + num_nodes)
    return True


def _mean(features: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return the mean of these rows; zeros if there are none."""
    if not len(rows):
        return features.new_zeros(features.shape[1])
    return features[torch.from_numpy(rows).to(features.device)].mean(dim=0)
