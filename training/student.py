"""The draft's first weights and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from engine.eagle import EagleDraft


def new_draft(text_config: PretrainedConfig, seed: int, like: nn.Module | None) -> EagleDraft:
    """A draft whose layer is a copy of ``like``, a layer of the target, or random for ``None``."""
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
    """The ``size`` most frequent token ids, int64 and rising, ``always`` (those that end an answer) among
    them and ``never`` (a picture's placeholder) not; ``None`` for all. Where fewer occur, low ids follow:
    tokenizers give those to the commonest pieces.
    """
    if size is None or size >= len(counts):
        return None
    rank = counts.astype(np.float64)
    rank[list(always)] = np.inf
    if never is not None:
        rank[never] = -np.inf
    chosen = np.argsort(-rank, kind="stable")[:size]
    return torch.from_numpy(np.sort(chosen))
