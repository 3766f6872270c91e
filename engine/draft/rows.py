"""Builds the packed row that the draft runs to catch up, with pictures compressed.

Each token first becomes one input of the layer: the feature of the preceding token joined with the token's
own embedding. Then the visual tokens of compressed pictures are replaced by fewer. Knows no trees.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from compressors.base import Compressed
from engine.batch import Batch, Part, build_batch
from engine.draft.branches import Branches, picture_of
from engine.draft.features import CatchUp
from engine.draft.kv import DraftKV
from engine.draft.model import DraftModel
from engine.draft.slots import Block
from engine.transfer import to_device

Indices = npt.NDArray[np.int64]


@dataclass(slots=True, frozen=True)
class _Cut:
    """A picture to compress.

    ``rows``: the rows of its visual tokens among all tokens, ``[N]``. ``scores`` float ``[N]``: the encoder's
    attention scores, if available.
    """

    block: Block
    member: int
    rows: Indices
    scores: torch.Tensor | None


@dataclass(slots=True)
class _Slots:
    """The slots of one catch-up.

    ``tokens``: the token whose place each slot takes; ``rows``: the input row that it reads, both ``[K]``.
    """

    tokens: Indices
    rows: Indices


class DraftRows:
    """Builds rows for a draft.

    ``embed`` returns the target's embeddings ``[N, hidden]`` of token ids ``[N]``.
    """

    def __init__(
        self,
        model: DraftModel,
        branches: Branches,
        embed: Callable[[torch.Tensor], torch.Tensor],
        page_size: int,
    ) -> None:
        self._model, self._branches = model, branches
        self._embed, self._page_size = embed, page_size

    @torch.inference_mode()
    def build(self, taken: Seq[CatchUp]) -> tuple[Batch, torch.Tensor] | None:
        """Return the batch and the layer's inputs, ``[num_rows, D]``; ``None`` if no sequence has a slot.

        Sequences without a slot are left out.
        """
        inputs, slots = self._joined(taken), _whole(taken)
        cuts = _cuts(taken)
        if cuts:
            found = self._compressed(inputs, cuts)
            _place(slots, cuts, found, len(inputs))
            for cut, one in zip(cuts, found, strict=True):
                cut.block.sources = one.sources.numpy().astype(np.int32)
            inputs = torch.cat([inputs, *(one.values.to(inputs.dtype) for one in found)])
            (rows,) = to_device([np.concatenate([own.rows for own in slots])], inputs.device)
            inputs = inputs[rows]
        parts = [_part(one, own.tokens) for one, own in zip(taken, slots, strict=True) if len(own.tokens)]
        return (build_batch(parts, self._page_size, self._model.device), inputs) if parts else None

    def _joined(self, taken: Seq[CatchUp]) -> torch.Tensor:
        """Return one input of the layer for each token, ``[N, D]``."""
        ids = [np.asarray(one.sequence.token_ids[one.start : one.end], dtype=np.int64) for one in taken]
        embeddings = self._embed(*to_device([np.concatenate(ids)], self._model.device))
        first = 0
        for one in taken:
            for token, own in one.embeddings:  # of prompt tokens; pictures have no id to look up
                begin, end = max(one.start, token), min(one.end, token + len(own))
                if begin < end:
                    at = first + begin - one.start
                    embeddings[at : at + end - begin] = own[begin - token : end - token]
            first += one.count
        features = torch.cat([one.features for one in taken])
        return self._model.join(self._model.fuse(features), embeddings)

    def _compressed(self, inputs: torch.Tensor, cuts: Seq[_Cut]) -> list[Compressed]:
        """Compress each picture, with one call per branch; the returned sources are on the host."""
        found: dict[int, Compressed] = {}
        for tag in dict.fromkeys(cut.block.tag for cut in cuts):
            assert tag is not None
            members = [i for i, cut in enumerate(cuts) if cut.block.tag == tag]
            (rows,) = to_device([np.concatenate([cuts[i].rows for i in members])], inputs.device)
            pictures = [picture_of(cuts[i].block.view, cuts[i].scores) for i in members]
            found.update(zip(members, self._branches.branch(tag)(inputs[rows], pictures), strict=True))
        ordered = [found[i] for i in range(len(cuts))]
        sources = torch.cat([one.sources for one in ordered]).cpu()  # one copy for all
        parts = sources.split([len(one.sources) for one in ordered])
        return [Compressed(one.values, own) for one, own in zip(ordered, parts, strict=True)]


def _draft_of(one: CatchUp) -> DraftKV:
    assert one.sequence.draft is not None
    return one.sequence.draft


def _whole(taken: Seq[CatchUp]) -> list[_Slots]:
    """Return one slot for each token."""
    ends = np.cumsum([one.count for one in taken]).tolist()
    return [
        _Slots(np.arange(one.start, one.end), np.arange(end - one.count, end))
        for one, end in zip(taken, ends, strict=True)
    ]


def _cuts(taken: Seq[CatchUp]) -> list[_Cut]:
    cuts, first = [], 0
    for member, one in enumerate(taken):
        for block in _draft_of(one).blocks_to(one.end):
            if block.is_cut:
                rows = block.view.image.places - one.start + first
                cuts.append(_Cut(block, member, rows, one.image_scores.get(block.view.key)))
        first += one.count
    return cuts


def _place(slots: Seq[_Slots], cuts: Seq[_Cut], found: Seq[Compressed], first: int) -> None:
    """Replace the visual tokens of ``cuts`` by compressed ones, whose rows start at ``first``."""
    for cut, done in zip(cuts, found, strict=True):
        assert len(done.values) == cut.block.num_kept, "pages were reserved for another number of slots"
        own = slots[cut.member]
        tokens = cut.block.view.image.places
        stays = ~np.isin(own.rows, cut.rows)
        all_tokens = np.concatenate([own.tokens[stays], tokens[done.sources.numpy()]])
        all_rows = np.concatenate([own.rows[stays], np.arange(first, first + len(done.values))])
        order = np.argsort(all_tokens, kind="stable")
        own.tokens, own.rows = all_tokens[order], all_rows[order]
        first += len(done.values)


def _part(one: CatchUp, tokens: Indices) -> Part:
    sequence, draft = one.sequence, _draft_of(one)
    positions = sequence.positions(one.start, one.end)[..., tokens - one.start]
    token_ids = np.asarray(sequence.token_ids[one.start : one.end], dtype=np.int64)[tokens - one.start]
    return Part(token_ids, positions, draft.table.pages, draft.num_slots)
