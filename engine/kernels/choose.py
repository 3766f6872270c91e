"""Which kernels attend, by device: our own on a CPU in float32, Triton's on CUDA, else plain torch."""

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
    """``None`` for plain torch. ``cpu``: the compiled kernels, where they are used; ``triton``: whether
    Triton may be.
    """
    if cpu is not None:
        return CpuAttention(cpu)
    if device.type != "cuda" or not triton:
        return None
    if find_spec("triton") is None:
        log.warning("Triton is not installed: attention runs in plain torch, slower")
        return None
    return _checked(device, shape, num_heads)


def install_parts(model: torch.nn.Module, attention: AttentionKernels) -> None:
    """Where Triton attends, put its parts in the place of a model's own, as far as they are like them."""
    try:
        from engine.kernels.triton_attention import TritonAttention
        from engine.kernels.triton_install import install

        assert isinstance(attention, TritonAttention)
        log.info("Triton kernels in place of %s", install(model, attention))
        if torch.cuda.is_available():  # what was freed is not taken: KV gets what the GPU calls free
            torch.cuda.empty_cache()
    except Exception as error:  # the parts that are in place are whole
        log.warning("Triton's kernels cannot be used for all layers: %s", error, exc_info=True)


def _checked(device: torch.device, shape: KVShape, num_heads: int) -> AttentionKernels | None:
    """Triton's, if they compile here (that takes a C compiler) and give the right numbers for these sizes. A
    few seconds the first time; what was compiled stays on disk.
    """
    try:
        from engine.kernels.triton_attention import TritonAttention

        kernels = TritonAttention.of(device)
        found = worst_difference(kernels, shape, num_heads, device)
    except Exception as error:  # whatever a compiler, its driver or its cache may raise: there is another way
        log.warning("Triton's attention cannot be used, plain torch is slower: %s", error, exc_info=True)
        return None
    if not found <= CLOSE[shape.dtype]:  # a NaN is no agreement
        log.error("Triton's attention differs from plain torch by %.1e and is not used; please report", found)
        return None
    return kernels
