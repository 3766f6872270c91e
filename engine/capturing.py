"""What of an engine's steps is launched as CUDA graphs, and when."""

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
    """On CUDA with Triton's attention, which takes its plan from memory; plain torch's is made of shapes.
    After the drafter is made, which may tap layers of the target.
    """
    if not config.cuda_graphs or target.device.type != "cuda" or target.attention is None:
        return
    capture, max_pages = CudaCapture(target.device), pages_of(sizes.max_model_len, config.page_size)
    target.capture(cache, config.max_num_seqs, max_pages, capture)
    if isinstance(drafter, EagleDrafter):
        drafter.capture(config.max_num_seqs, max_pages, target.position_axes, config.speculative, capture)


def pages_of(max_model_len: int, page_size: int) -> int:
    """Of a sequence with a tree behind it, at most."""
    return -(-(max_model_len + MAX_TREE_NODES) // page_size) + 1
