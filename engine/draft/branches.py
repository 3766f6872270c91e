"""Visual compression for drafts: the available compressor branches, and the branch of each picture.

Clients refer to a branch by name (``pool``), pages and reports by tag (``pool-5``, which includes the ratio).
Branches without weights work with any draft; learned branches, and a gate that chooses one by the question,
are part of the draft.
"""

from __future__ import annotations

from typing import get_args

import torch

from compressors.base import Compressor, Picture
from compressors.elastic import TRAINING_FREE, Elastic, training_free
from engine.adapters.base import Adapter
from engine.config import CompressorName, SpeculativeConfig
from engine.draft.slots import WHOLE, View
from engine.errors import ModelLoadError
from engine.hashing import root_hash
from engine.messages import Detail, GenerateRequest
from engine.visual_compression import grids_of

RATIO = 5.0
"""Default ratio of training-free branches, if neither the settings nor the draft specify one."""


class Branches:
    """Resolves the compressor branches of a draft.

    ``trained``: the compressor that is part of the draft, if any, on the draft's device. ``knows_attention``:
    whether pictures come with attention scores. Raises ``ModelLoadError`` for unsupported settings.
    """

    def __init__(
        self, settings: SpeculativeConfig, trained: Elastic | None = None, *, knows_attention: bool = False
    ) -> None:
        self._trained, self._ratios = trained, settings.compressor_ratios
        self._branches: dict[CompressorName, Compressor] = {}
        try:
            self._branches = self._find_branches(knows_attention=knows_attention)
        except ValueError as error:
            raise ModelLoadError(f"compressor_ratios: {error}") from error
        missing = {*self._ratios, settings.compressor} - {*self._branches, "auto"}
        if missing:
            raise ModelLoadError(
                f"this draft came without the compressor {', '.join(sorted(missing))}; it has "
                f"{', '.join(self._branches)}"
            )
        self._default = settings.compressor
        self._by_tag = {branch.tag: branch for branch in self._branches.values()}

    @property
    def names(self) -> tuple[CompressorName, ...]:
        """The compressors that a request may ask for."""
        return ("auto", *self._branches)

    def views(self, request: GenerateRequest, adapter: Adapter) -> list[View]:
        """Return how the draft is to see each picture of a validated request."""
        asked, images, root = request.speculative, request.prompt.images, root_hash(request.cache_salt)
        found = []
        details: list[Detail] = asked.details or ["auto"] * len(images)
        for image, detail in zip(images, details, strict=True):
            grids = grids_of(image, adapter)
            tag = self._tag(asked.compressor, detail, Picture(grids, image.hash))
            found.append(View(image, image.hash + root, grids, tag))
        return found

    def branch(self, tag: str) -> Compressor:
        return self._by_tag[tag]

    def num_kept(self, tag: str, view: View) -> int:
        return self.branch(tag).num_kept(picture_of(view))

    def strongest(self, view: View) -> str:
        """Return the tag of the branch that keeps the fewest tokens of a picture, but at least some."""
        return self._strongest(picture_of(view)).tag

    def choose(self, pictures: torch.Tensor, questions: torch.Tensor) -> list[str]:
        """Return the tags of the branches that the gate chooses for P pictures.

        Both arguments are ``[P, size]``, as for :class:`compressors.gate.Gate`.
        """
        assert self._trained is not None
        ways = [self._at_ratio(way) for way in self._trained.decide(pictures, questions)]
        for way in ways:
            self._by_tag.setdefault(way.tag, way)
        return [way.tag for way in ways]

    def _find_branches(self, *, knows_attention: bool) -> dict[CompressorName, Compressor]:
        trained = {} if self._trained is None else {way.name: way for way in self._trained.ways}
        blind = [way.name for way in trained.values() if way.needs_scores and not knows_attention]
        if blind:
            raise ModelLoadError(
                f"{blind[0]} needs the vision tower's attention scores, which are not available"
            )
        free = {name: training_free(name, RATIO) for name in TRAINING_FREE}
        known = {name: way for name, way in free.items() if knows_attention or not way.needs_scores} | trained
        return {name: self._at_ratio(known[name]) for name in get_args(CompressorName) if name in known}

    def _at_ratio(self, branch: Compressor) -> Compressor:
        """Return ``branch`` at the ratio in the settings, if they specify one for it."""
        for name, ratio in self._ratios.items():
            if name == branch.name and ratio != branch.ratio:
                return branch.at(ratio)
        return branch

    def _tag(self, asked: CompressorName, detail: Detail, picture: Picture) -> str | None:
        """Return the tag of the branch to use; ``None`` leaves the choice to the gate.

        A branch requested by name takes precedence over ``detail``.
        """
        if asked == "auto" and detail != "auto":
            return WHOLE if detail == "high" else self._strongest(picture).tag
        name = self._default if asked == "auto" else asked
        if name != "auto":
            return self._branches[name].tag
        return WHOLE if self._trained is None else None

    def _strongest(self, picture: Picture) -> Compressor:
        """Return the branch that keeps the fewest tokens, but at least some, preferring trained branches."""
        ways = [] if self._trained is None else [self._at_ratio(way) for way in self._trained.ways]
        keeping = [way for way in ways if way.name not in (WHOLE, "text_only")]
        keeping = keeping or [self._branches["pool"], self._branches["prune"]]
        for way in keeping:
            self._by_tag.setdefault(way.tag, way)
        return min(keeping, key=lambda way: way.num_kept(picture))


def picture_of(view: View, scores: torch.Tensor | None = None) -> Picture:
    return Picture(view.grids, view.image.hash, scores)
