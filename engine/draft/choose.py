"""Selection of the drafter for a target: the ``--draft`` option."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download

from engine.config import EngineConfig
from engine.draft.base import Drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.draft.model import DraftModel
from engine.draft.ngram_drafter import NgramDrafter
from engine.errors import ModelLoadError
from engine.sizing import Sizes
from engine.target import TargetModel

log = logging.getLogger(__name__)

OWN_DRAFT = "draft"
"""The folder inside a model's folder that holds the draft trained for it."""

MakeDrafter = Callable[[EngineConfig, TargetModel, Sizes], Drafter | None]


def no_drafter(config: EngineConfig, target: TargetModel, sizes: Sizes) -> None:
    """Choose no drafter, for plain decoding."""


def choose_drafter(config: EngineConfig, target: TargetModel, sizes: Sizes) -> Drafter | None:
    """Return the drafter that ``config.draft`` names. Raises ``ModelLoadError`` if it cannot be loaded."""
    if config.draft == "none" or not config.speculative.enabled:
        return None
    own = Path(config.model) / OWN_DRAFT
    image_token = target.adapter.image_token_id
    lookup = NgramDrafter(never=frozenset() if image_token is None else frozenset({image_token}))
    if config.draft == "ngram" or (config.draft == "auto" and not own.is_dir()):
        return lookup
    folder = own if config.draft == "auto" else _find(config.draft)
    model = DraftModel.load(folder, target, Path(config.model))
    log.info("drafting with %s", folder)
    return EagleDrafter(
        model,
        sizes.num_pages,
        config.page_size,
        target.embed,
        caching=config.enable_prefix_caching,
        max_num_seqs=config.max_num_seqs,
        lookup=lookup,
        settings=config.speculative,
        knows_attention=target.adapter.knows_attention,
    )


def _find(name: str) -> Path:
    """Return the folder ``name``, or download it as a hub id if there is no such folder."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"]))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"--draft {name!r} is neither a folder nor a hub id that can be downloaded: {error}"
        ) from error
