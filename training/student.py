"""Creates what is trained: the draft, its vocabulary and its compressor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from compressors.elastic import BranchConfig, Elastic, ElasticConfig
from engine.draft.eagle import EagleDraft
from engine.draft.files import load_draft
from training.errors import TrainingError
from training.settings import TrainSettings

# Default branches of each mode: those that the paper combines, at the ratios that it found best.
BRANCHES = {
    "select": ["prune:10", "pool:10", "conv:5", "resampler:20", "text_only"],
    "weight": ["prune:3", "pool:3", "conv:3"],
    "concat": ["pool:20", "conv:3", "resampler:50"],
}


@dataclass(frozen=True, slots=True)
class Student:
    """What is trained. ``vocabulary``: tokens that the draft can propose, int64 ``[V]``; all if ``None``."""

    draft: EagleDraft
    compressor: Elastic | None = None
    vocabulary: Tensor | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that a checkpoint holds, by name."""
        named: dict[str, nn.Module] = {"draft": self.draft}
        return named if self.compressor is None else named | {"compressor": self.compressor}


def continued(
    folder: Path, text_config: PretrainedConfig, settings: TrainSettings, *, knows_attention: bool
) -> Student:
    """Load the draft in ``folder`` to continue from.

    Those of its branches that the settings ask for are taken over, and its gate if all branches are the same;
    new parts are initialised. Raises ``ModelLoadError`` if the draft was made for another target.
    """
    loaded = load_draft(folder, text_config, attn_implementation="sdpa")
    compressor = new_compressor(settings, loaded.module, knows_attention=knows_attention)
    if compressor is not None and loaded.compressor is not None:
        own, found = compressor.state_dict(), loaded.compressor.state_dict()
        same_gate = compressor.config.branches == loaded.compressor.config.branches
        taken = {
            name: value
            for name, value in found.items()
            if name in own and own[name].shape == value.shape and (same_gate or not name.startswith("gate."))
        }
        compressor.load_state_dict(own | taken)
    return Student(loaded.module, compressor, loaded.vocabulary)


def new_compressor(settings: TrainSettings, draft: EagleDraft, *, knows_attention: bool) -> Elastic | None:
    """Create the compressor that the settings ask for. Raises ``TrainingError`` for invalid branches.

    ``knows_attention``: whether the teacher provides attention scores of pictures.
    """
    if settings.compressor == "off":
        return None
    names = settings.branches or BRANCHES[settings.compressor]
    try:
        branches = tuple(BranchConfig(name, float(ratio or 1)) for name, _, ratio in map(_parted, names))
        config = ElasticConfig(settings.compressor, branches, settings.num_queries)
        compressor = Elastic(config, int(draft.config.hidden_size), draft.feature_size)
    except ValueError as error:
        raise TrainingError(f"--branches: {error}") from error
    blind = [way.name for way in compressor.ways if way.needs_scores and not knows_attention]
    if blind:
        raise TrainingError(
            f"--branches: {blind[0]} needs the vision tower's attention scores, which are available for "
            "LLaVA-1.5 only"
        )
    compressor.reset(torch.Generator().manual_seed(settings.seed))
    return compressor


def _parted(branch: str) -> tuple[str, str, str]:
    return branch.partition(":")


def new_draft(text_config: PretrainedConfig, seed: int, like: nn.Module | None) -> EagleDraft:
    """Create a draft whose layer is a copy of ``like``, a layer of the target, or random for ``None``."""
    draft = EagleDraft(text_config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(seed)
    std = float(getattr(text_config, "initializer_range", 0.02))
    with torch.no_grad():
        for name, parameter in sorted(draft.named_parameters()):
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, std, generator=generator)
    if like is not None:
        draft.layer.load_state_dict({name: value.float().cpu() for name, value in like.state_dict().items()})
    return draft.float()


def draft_vocabulary(
    counts: npt.NDArray[np.int64], size: int | None, always: Iterable[int], never: int | None
) -> Tensor | None:
    """Return the ``size`` most frequent token ids, int64 and ascending, or ``None`` for all.

    The ids ``always`` (tokens that end an answer) are included, ``never`` (the placeholder of a picture) is
    not. If fewer tokens occur, the lowest ids fill up: tokenizers give those to the most common pieces.
    """
    if size is None or size >= len(counts):
        return None
    rank = counts.astype(np.float64)
    rank[list(always)] = np.inf
    if never is not None:
        rank[never] = -np.inf
    chosen = np.argsort(-rank, kind="stable")[:size]
    return torch.from_numpy(np.sort(chosen))
