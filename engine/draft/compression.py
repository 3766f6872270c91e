"""Which compressors a draft can use, and which of them a picture goes through.

Branches are known by name (``pool``) to clients and by tag (``pool-5``, the ratio in it) to pages and
reports. Those without weights serve any draft; learned ones, and a gate that chooses by question, come with
the draft.
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
"""Of branches that need no training, where neither settings nor draft name one."""


class Compression:
    """``trained``: the compressor that came with the draft, where its tensors are. ``knows_attention``:
    whether pictures have scores. Raises ``ModelLoadError`` for settings that it cannot honour.
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
        """What a request may ask for."""
        return ("auto", *self._branches)

    def views(self, request: GenerateRequest, adapter: Adapter) -> list[View]:
        """How a request, which was checked, wants the draft to see its pictures."""
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
        """The branch that keeps least of a picture, but something."""
        return self._strongest(picture_of(view)).tag

    def choose(self, pictures: torch.Tensor, questions: torch.Tensor) -> list[str]:
        """The gate's branches of P pictures, both ``[P, size]``, as :class:`compressors.gate.Gate` takes
        them.
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
            raise ModelLoadError(f"{blind[0]} needs what the vision tower attends to, which is not known")
        free = {name: training_free(name, RATIO) for name in TRAINING_FREE}
        known = {name: way for name, way in free.items() if knows_attention or not way.needs_scores} | trained
        return {name: self._at_ratio(known[name]) for name in get_args(CompressorName) if name in known}

    def _at_ratio(self, branch: Compressor) -> Compressor:
        """At the ratio of the settings, if they name one for this branch."""
        for name, ratio in self._ratios.items():
            if name == branch.name and ratio != branch.ratio:
                return branch.at(ratio)
        return branch

    def _tag(self, asked: CompressorName, detail: Detail, picture: Picture) -> str | None:
        """``None`` leaves the choice to the gate. A branch asked for by name stands above ``detail``."""
        if asked == "auto" and detail != "auto":
            return WHOLE if detail == "high" else self._strongest(picture).tag
        name = self._default if asked == "auto" else asked
        if name != "auto":
            return self._branches[name].tag
        return WHOLE if self._trained is None else None

    def _strongest(self, picture: Picture) -> Compressor:
        """That keeps least, but something; what was trained comes before what was not."""
        ways = [] if self._trained is None else [self._at_ratio(way) for way in self._trained.ways]
        keeping = [way for way in ways if way.name not in (WHOLE, "text_only")]
        keeping = keeping or [self._branches["pool"], self._branches["prune"]]
        for way in keeping:
            self._by_tag.setdefault(way.tag, way)
        return min(keeping, key=lambda way: way.num_kept(picture))


def picture_of(view: View, scores: torch.Tensor | None = None) -> Picture:
    return Picture(view.grids, view.image.hash, scores)
