"""The KV cache: the tensors behind the page pool, with keys and values of every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PretrainedConfig

from engine.kernels.spans import AttentionKernels


@dataclass(slots=True, frozen=True)
class KVShape:
    """The shape and dtype of the KV of one token."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> KVShape:
        """Return the KV shape of a text model with this configuration."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, config.num_key_value_heads, head_dim, dtype)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


_CACHE_LINE = 64  # bytes


class KVCache:
    """Keys and values, one tensor ``[num_slots + 1, num_kv_heads, head_dim]`` per layer.

    ``attention``: the attention kernels that read them, if not torch alone. The last slot, ``num_slots``,
    belongs to no page: padding rows write there. All layers are views of one tensor, so that slots can be
    moved in all layers at once.
    """

    def __init__(
        self,
        shape: KVShape,
        num_pages: int,
        page_size: int,
        device: torch.device,
        attention: AttentionKernels | None = None,
    ) -> None:
        self.attention = attention
        self.num_slots, self.page_size, self.device = num_pages * page_size, page_size, device
        size = (2 * shape.num_layers, self.num_slots + 1, shape.num_kv_heads, shape.head_dim)
        self._all = _zeros(size, shape.dtype, device)
        self.keys, self.values = list(self._all[0::2]), list(self._all[1::2])

    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy slots ``sources`` to ``targets``, both int64 ``[M]``, in every layer; they may overlap."""
        self._all.index_copy_(1, targets, self._all.index_select(1, sources))


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of zeros: unwritten slots are read under a mask, and garbage there could be NaN.

    On a CPU the memory comes from numpy, which leaves zeroing to the operating system. Pages are committed
    when first written, so a large cache costs neither start-up time nor unused memory. The tensor is aligned
    to cache lines: large numpy allocations start 16 bytes past a page boundary, and keys that straddle cache
    lines take longer to read.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    room = np.zeros(num_bytes + _CACHE_LINE, dtype=np.uint8)
    first = -room.ctypes.data % _CACHE_LINE
    return torch.from_numpy(room[first : first + num_bytes]).view(dtype).view(size)
