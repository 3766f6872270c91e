"""Captures the parts of an engine's steps that run as CUDA graphs."""

from __future__ import annotations

from engine.config import MAX_TREE_NODES, EngineConfig
from engine.draft.base import Drafter
from engine.draft.eagle_drafter import EagleDrafter
from engine.graphs import CudaCapture
from engine.kv_cache import KVCache
from engine.sizing import Sizes
from engine.target import TargetModel


def capture_steps(
    config: EngineConfig, target: TargetModel, cache: KVCache, drafter: Drafter | None, sizes: Sizes
) -> None:
    """Capture CUDA graphs of target and draft, on CUDA with Triton attention.

    Triton attention reads its plan from memory, whereas plain torch's depends on shapes. Must be called after
    the drafter is created, since that may tap layers of the target.
    """
    if not config.cuda_graphs or target.device.type != "cuda" or target.attention is None:
        return
    capture, max_pages = CudaCapture(target.device), pages_of(sizes.max_model_len, config.page_size)
    target.capture(cache, config.max_num_seqs, max_pages, capture)
    if isinstance(drafter, EagleDrafter):
        drafter.capture(config.max_num_seqs, max_pages, target.position_axes, config.speculative, capture)


def pages_of(max_model_len: int, page_size: int) -> int:
    """Return the most pages of a sequence, including a tree after its last token."""
    return -(-(max_model_len + MAX_TREE_NODES) // page_size) + 1
