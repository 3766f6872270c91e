"""Chooses the maximum sequence length and the number of KV pages from model, memory and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.host.memory import available_memory
from engine.kv_cache import KVShape
from engine.plan import StepLimits

_GIB = 1 << 30
_MAX_CPU_KV = 4 * _GIB
_CPU_SHARE = 0.25  # of the memory left by the weights; pictures, steps and other programs need the rest


@dataclass(slots=True, frozen=True)
class Sizes:
    """The chosen sizes; ``num_pages`` pages hold at least one sequence of ``max_model_len`` tokens."""

    max_model_len: int
    num_pages: int
    limits: StepLimits


def choose_sizes(
    config: EngineConfig,
    shape: KVShape,
    model_len: int,
    device: torch.device,
    longest_block: int = 0,
    reserved: Callable[[StepLimits], int] = lambda _: 0,
) -> Sizes:
    """Choose the sizes for a model with KV of this ``shape`` and a context of ``model_len`` tokens.

    ``longest_block``: tokens that must run in one step. ``reserved`` returns the bytes of GPU memory that are
    not available for KV; it is called only if the KV size is not configured. Raises ``ModelLoadError`` with
    both numbers if the requested sizes do not fit.
    """
    limits = _limits(config, device, longest_block)
    page_bytes = shape.bytes_per_token * config.page_size
    if config.kv_cache_memory is not None:
        memory = config.kv_cache_memory
    else:
        if device.type == "cuda":
            memory = _free_gpu_memory(config, device) - reserved(limits)
        else:
            memory = min(_MAX_CPU_KV, int(available_memory() * _CPU_SHARE))
        if config.draft not in ("none", "ngram"):  # a draft has as many pages, each of one layer
            page_bytes += page_bytes // shape.num_layers
    num_pages = max(0, memory) // page_bytes
    wanted = config.max_model_len or model_len
    if wanted > model_len:
        raise ModelLoadError(
            f"--max-model-len {wanted} is longer than the model's own context of {model_len}"
        )
    capacity = num_pages * config.page_size
    if capacity < 1 or (config.max_model_len is not None and capacity < wanted):
        raise ModelLoadError(
            f"a sequence of {wanted} tokens needs {wanted * shape.bytes_per_token} bytes of KV and there are "
            f"{memory}; lower --max-model-len or raise --kv-cache-memory"
        )
    max_model_len = min(wanted, capacity)
    # Pages beyond what all running sequences can fill only serve as prefix cache; allow for twice as many.
    useful = 2 * config.max_num_seqs * -(-max_model_len // config.page_size)
    return Sizes(max_model_len, min(num_pages, useful), limits)


def _limits(config: EngineConfig, device: torch.device, longest_block: int) -> StepLimits:
    on_cpu = device.type == "cpu"
    tokens = config.max_num_batched_tokens or max(
        config.max_num_seqs + longest_block, 256 if on_cpu else 8192
    )
    encoder = config.max_num_encoder_tokens or (512 if on_cpu else 8192)
    try:
        return StepLimits(config.max_num_seqs, tokens, encoder, longest_block)
    except ValueError as error:
        raise ModelLoadError(str(error)) from error


def _free_gpu_memory(config: EngineConfig, device: torch.device) -> int:
    """Return the bytes left of the engine's share, after its weights and the memory of other processes."""
    free, total = torch.cuda.mem_get_info(device)
    return int(total * config.gpu_memory_utilization) - (total - free)
