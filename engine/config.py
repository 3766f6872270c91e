"""Engine configuration: immutable settings, with no dependency on torch or the environment."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
LogFormat = Literal["auto", "json", "console"]
"""``auto``: human-readable lines on a terminal, JSON elsewhere."""

BranchName = Literal["prune", "prune_uniform", "prune_norm", "prune_attention", "pool", "conv", "resampler"]
"""Compressor branches that have a ratio."""
CompressorName = Literal["auto", "none", BranchName, "text_only"]
"""``auto``: decided by the gate of the draft's own compressor, if it has one, else all visual tokens."""

MAX_TREE_NODES = 64
"""Maximum nodes of a draft tree, root included: a node's ancestors are the bits of one 64-bit integer."""
MAX_STEPS = 32
MAX_TOPK = 32


class TreeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Upper limits of a draft tree.

    ``num_steps``: depth; ``topk``: children per node; ``num_draft_tokens``: nodes without the root.
    """

    num_steps: int
    topk: int
    num_draft_tokens: int

    @property
    def enabled(self) -> bool:
        return all((self.num_steps, self.topk, self.num_draft_tokens))


class SpeculativeConfig(TreeLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine's setting: upper limits of every draft tree; within them, each step chooses what pays.

    ``num_draft_tokens``: at most ``MAX_TREE_NODES`` - 1. ``compressor``: how pictures are compressed for the
    draft if a request does not specify it; ``compressor_ratios``: visual tokens per kept token, by branch.
    """

    num_steps: int = 6
    topk: int = 6
    num_draft_tokens: int = 32
    compressor: CompressorName = "auto"
    compressor_ratios: dict[BranchName, Annotated[float, msgspec.Meta(ge=1)]] = {}

    def __post_init__(self) -> None:
        limits = {"num_steps": MAX_STEPS, "topk": MAX_TOPK, "num_draft_tokens": MAX_TREE_NODES - 1}
        for name, most in limits.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in 0..{most}, got {value}")
        if (self.num_steps - 1) * self.topk > MAX_TREE_NODES:
            raise ValueError(
                f"(num_steps - 1) * topk must not exceed {MAX_TREE_NODES}, the nodes a draft can expand; "
                f"got ({self.num_steps} - 1) * {self.topk}"
            )


class VisualCompression(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lossy compression of visual tokens for the model itself, which changes its answers.

    ``ratio``: approximate number of tokens per kept token. ``pool`` averages neighbouring tokens; ``prune``
    keeps the tokens that differ most from each other.
    """

    method: Literal["none", "pool", "prune"]
    ratio: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 4.0


NO_COMPRESSION = VisualCompression(method="none")
NO_SPECULATION = TreeLimits(num_steps=0, topk=0, num_draft_tokens=0)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine replica.

    ``max_num_batched_tokens`` bounds the rows of one target forward pass, ``max_num_encoder_tokens`` the
    visual tokens encoded in one step; ``None`` lets the engine choose by device. ``kv_cache_memory`` is in
    bytes; ``None`` takes ``gpu_memory_utilization`` of a GPU's memory, or a share of a CPU's free memory.
    ``draft``: ``none``, ``ngram``, a folder or hub id of draft weights, or ``auto``: the model's own draft
    (the folder ``draft`` inside the model's), else ``ngram``. ``cpu_kernels``: compile and use the engine's
    own kernels where possible (a CPU and a C++ compiler); they compute in float32, from weights rounded to
    ``dtype``. ``triton_kernels``: use the engine's Triton kernels on CUDA; ``cuda_graphs``: with them, run
    steps of few rows as CUDA graphs. ``target_visual_compression``: the default for requests that do not
    specify it; if ``None``, requests that do are refused.
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
