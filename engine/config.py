"""What an engine needs to know to start. One immutable value; no torch, no environment."""

from __future__ import annotations

from typing import Literal

import msgspec

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine replica.

    ``max_num_batched_tokens`` bounds the rows of one target forward, ``max_num_encoder_tokens`` the visual
    tokens encoded in one step; ``None`` lets the engine choose by device. ``kv_cache_memory`` is in bytes;
    ``None`` takes ``gpu_memory_utilization`` of a GPU, or a share of the free memory of a CPU.
    """

    model: str
    revision: str | None = None
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
    trust_remote_code: bool = False
