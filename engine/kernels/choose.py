"""Selects attention kernels by device: C++ on a CPU in float32, Triton on CUDA, otherwise plain torch."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from engine.kernels.check import CLOSE, worst_difference
from engine.kernels.cpu import Kernels
from engine.kernels.rows import CpuAttention
from engine.kernels.spans import AttentionKernels
from engine.kv_cache import KVShape

log = logging.getLogger(__name__)


def attention_kernels(
    device: torch.device, shape: KVShape, num_heads: int, cpu: Kernels | None, *, triton: bool
) -> AttentionKernels | None:
    """Return the attention kernels for a device, ``None`` for plain torch.

    ``cpu``: the compiled CPU kernels, if they are used; ``triton``: whether Triton may be used.
    """
    if cpu is not None:
        return CpuAttention(cpu)
    if device.type != "cuda" or not triton:
        return None
    if find_spec("triton") is None:
        log.warning("Triton is not installed: attention runs in plain torch, which is slower")
        return None
    return _checked(device, shape, num_heads)


def install_parts(model: torch.nn.Module, attention: AttentionKernels) -> None:
    """Replace parts of a model that runs Triton attention by equivalent Triton modules, where possible."""
    try:
        from engine.kernels.triton_attention import TritonAttention
        from engine.kernels.triton_install import install

        assert isinstance(attention, TritonAttention)
        log.info("Triton kernels replace %s", install(model, attention))
        if torch.cuda.is_available():  # return freed memory, since KV gets what the GPU reports as free
            torch.cuda.empty_cache()
    except Exception as error:  # parts that were already replaced are complete
        log.warning("Triton's kernels cannot be used for all layers: %s", error, exc_info=True)


def _checked(device: torch.device, shape: KVShape, num_heads: int) -> AttentionKernels | None:
    """Return Triton's kernels, if they compile (which requires a C compiler) and are correct for these sizes.

    Takes a few seconds the first time; compiled kernels are cached on disk.
    """
    try:
        from engine.kernels.triton_attention import TritonAttention

        kernels = TritonAttention.of(device)
        found = worst_difference(kernels, shape, num_heads, device)
    except Exception as error:  # a compiler, its driver or its cache may raise anything; fall back to torch
        log.warning("Triton's attention cannot be used, plain torch is slower: %s", error, exc_info=True)
        return None
    if not found <= CLOSE[shape.dtype]:  # true for NaN as well
        log.error("Triton's attention differs from plain torch by %.1e and is not used; please report", found)
        return None
    return kernels
