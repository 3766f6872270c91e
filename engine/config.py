"""What an engine needs to know to start. One immutable value; no torch, no environment."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
LogFormat = Literal["auto", "json", "console"]
"""``auto``: lines for people on a terminal, JSON elsewhere."""

BranchName = Literal["prune", "prune_uniform", "prune_norm", "prune_attention", "pool", "conv", "resampler"]
"""Branches that have a ratio."""
CompressorName = Literal["auto", "none", BranchName, "text_only"]
"""``auto``: the gate of the draft's own compressor, if it has one, else all visual tokens."""

MAX_TREE_NODES = 64
"""Nodes of a draft tree with its root: a node's ancestors are the bits of one 64-bit integer."""
MAX_STEPS = 32
MAX_TOPK = 32


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper limits of every draft tree; each step picks what pays within them.

    ``num_steps``: depth; ``topk``: children of a node; ``num_draft_tokens``: nodes without the root, at most
    ``MAX_TREE_NODES`` - 1. ``compressor``: what the draft sees of pictures where a request does not say;
    ``compressor_ratios``: by branch, visual tokens for each that is kept.
    """

    num_steps: int = 6
    topk: int = 6
    num_draft_tokens: int = 32
    compressor: CompressorName = "auto"
    compressor_ratios: dict[BranchName, Annotated[float, msgspec.Meta(ge=1)]] = {}

    @property
    def enabled(self) -> bool:
        return all((self.num_steps, self.topk, self.num_draft_tokens))

    def __post_init__(self) -> None:
        limits = {"num_steps": MAX_STEPS, "topk": MAX_TOPK, "num_draft_tokens": MAX_TREE_NODES - 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in 0..{most}, got {value}")
        if (self.num_steps - 1) * self.topk > MAX_TREE_NODES:
            raise ValueError(
                f"(num_steps - 1) * topk must not pass {MAX_TREE_NODES}, the nodes that a draft can expand; "
                f"got ({self.num_steps} - 1) * {self.topk}"
            )


class VisualCompression(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fewer visual tokens for the model itself, which changes answers. ``ratio``: tokens for each that is
    kept, nearly. ``pool``: means of neighbours; ``prune``: those that differ most from each other.
    """

    method: Literal["none", "pool", "prune"]
    ratio: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 4.0


NO_COMPRESSION = VisualCompression(method="none")
NO_SPECULATION = SpeculativeConfig(num_steps=0, topk=0, num_draft_tokens=0)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine replica.

    ``max_num_batched_tokens`` bounds the rows of one target forward, ``max_num_encoder_tokens`` the visual
    tokens encoded in one step; ``None`` lets the engine choose by device. ``kv_cache_memory`` is in bytes;
    ``None`` takes ``gpu_memory_utilization`` of a GPU, or a share of the free memory of a CPU.
    ``draft``: ``none``, ``ngram``, a folder or hub id of draft weights, or ``auto``: the model's own draft
    (folder ``draft`` inside the model's), else ``ngram``. ``cpu_kernels``: compile and use our own kernels
    where they apply (a CPU, a C++ compiler); they compute in float32, from weights rounded to ``dtype``.
    ``triton_kernels``: ours, on CUDA; ``cuda_graphs``: of steps of few rows, with those kernels.
    ``target_visual_compression``: of requests that do not say; ``None`` refuses those that do.
    """

    model: str
    revision: str | None = None
    draft: str = "auto"
    speculative: SpeculativeConfig = SpeculativeConfig()
    target_visual_compression: VisualCompression | None = None
    device: Device = "auto"
    dtype: DType = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    max_num_encoder_tokens: int | None = None
    page_size: int = 16
    kv_cache_memory: int | None = None
    gpu_memory_utilization: float = 0.9
    encoder_cache_tokens: int = 16384
    enable_prefix_caching: bool = True
    num_threads: int | None = None
    cpu_kernels: bool = True
    triton_kernels: bool = True
    cuda_graphs: bool = True
    trust_remote_code: bool = False
