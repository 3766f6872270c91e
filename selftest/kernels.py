"""Checks attention on the device under test against plain torch in float64 on a CPU, in real model sizes."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from engine.kernels.check import CLOSE, worst_difference
from engine.kernels.spans import AttentionKernels
from engine.kv_cache import KVShape
from engine.target import TargetModel

_TYPES = {
    "cpu": (torch.float32,),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
}
# (Attention heads, KV heads, head size) of SmolLM2-135M, Vicuna-7B and Qwen2.5-7B.
_SIZES = ((9, 3, 64), (32, 32, 128), (28, 4, 128))


def compare(target: TargetModel) -> Iterator[dict[str, Any]]:
    """Yield a result for each backend, dtype, size and window."""
    config = target.adapter.text_config
    own = (int(config.num_attention_heads), target.kv_shape.num_kv_heads, target.kv_shape.head_dim)
    for name, kernels in _backends(target):
        for dtype in _TYPES[target.device.type]:
            for sizes in dict.fromkeys([own, *_SIZES]):
                for window in (None, 40):
                    yield _result(name, kernels, sizes, dtype, window, target.device)


def _backends(target: TargetModel) -> list[tuple[str, AttentionKernels | None]]:
    """Return the backends to check; on CUDA always Triton's, so that the reason for not using it is seen."""
    found: list[tuple[str, AttentionKernels | None]] = [("torch", None)]
    if target.device.type == "cuda" and find_spec("triton") is not None:
        from engine.kernels.triton_attention import TritonAttention

        return [*found, ("triton", TritonAttention.of(target.device))]
    return found if target.attention is None else [*found, ("cpu kernels", target.attention)]


def _result(
    name: str,
    kernels: AttentionKernels | None,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    window: int | None,
    device: torch.device,
) -> dict[str, Any]:
    heads, kv_heads, dim = sizes
    found = worst_difference(kernels, KVShape(1, kv_heads, dim, dtype), heads, device, window=window)
    return {
        "name": f"attention: {name}, {str(dtype).removeprefix('torch.')}, {sizes}, window {window}",
        "passed": found <= CLOSE[dtype],
        "difference": found,
        "limit": CLOSE[dtype],
    }
