"""Calls into the compiled library (``cpu.cpp``) with tensors. Shapes and types are the callers' to keep."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.build import load_library

log = logging.getLogger(__name__)

WIDE = 32
"""Outputs of a block."""
_TRIAL_SIZE, _TRIALS, _TOO_SLOW = 1024, 15, 1.3
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "specvlm_linear": (_N, _P, _P, _N, _P, _P, _I, _I, _I),
    "specvlm_gated_mlp": (_N, _P, _P, _P, _N, _P, _P, _I, _I, _I),
    "specvlm_rms_norm": (_N, _P, _P, _F, _P, _I, _I),
    "specvlm_rotate_and_write": (_N, *(_P,) * 6, *(_I,) * 4),
    "specvlm_attend": (_N, _P, _I, _I, _P, _P, _P, *(_P,) * 6, *(_I,) * 5, _F),
}


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix ``[outputs, inputs]`` as blocks of 32 outputs ``[blocks, inputs, 32]``, padded with zeros."""

    blocks: Tensor
    outputs: int

    @property
    def kind(self) -> int:
        return _KINDS[self.blocks.dtype]

    def dense(self) -> Tensor:
        """float32 ``[outputs, inputs]``."""
        return self.blocks.transpose(1, 2).flatten(0, 1)[: self.outputs].float()


def narrowest(*matrices: Tensor) -> torch.dtype:
    """bfloat16 or float16 if that loses nothing of any of them, as of a checkpoint that was stored so."""
    for kind in (torch.bfloat16, torch.float16):
        if all(torch.equal(matrix.to(kind).to(matrix.dtype), matrix) for matrix in matrices):
            return kind
    return torch.float32


def pack(matrix: Tensor, kind: torch.dtype) -> Weight:
    """Of a matrix ``[outputs, inputs]``."""
    return Weight(_blocks(matrix, kind, WIDE), len(matrix))


def pack_pair(gate: Tensor, up: Tensor, kind: torch.dtype) -> Tensor:
    """Of two matrices ``[outputs, inputs]``: blocks of 16 outputs of each, ``[blocks, inputs, 16 + 16]``."""
    return torch.cat([_blocks(gate, kind, WIDE // 2), _blocks(up, kind, WIDE // 2)], dim=-1)


def _blocks(matrix: Tensor, kind: torch.dtype, size: int) -> Tensor:
    outputs, inputs = matrix.shape
    padded = torch.zeros(-(-outputs // size) * size, inputs, dtype=kind)
    padded[:outputs] = matrix
    return padded.view(-1, size, inputs).transpose(1, 2).contiguous()


class Kernels:
    """``threads``: of one call, as torch uses."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._threads = threads
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        self._linear, self._gated_mlp = library.specvlm_linear, library.specvlm_gated_mlp
        self._rms_norm, self._attend = library.specvlm_rms_norm, library.specvlm_attend
        self._rotate_and_write = library.specvlm_rotate_and_write

    @classmethod
    def load(cls, folder: Path) -> Kernels | None:
        """Compiled into ``folder`` at the first time; ``None`` where they cannot be had, or would not pay."""
        library = load_library(folder)
        if library is None:
            return None
        kernels = cls(library, torch.get_num_threads())
        if (cost := kernels.cost()) > _TOO_SLOW:
            log.warning("the CPU kernels take %.1f times as long as torch here and are not used", cost)
            return None
        return kernels

    @torch.inference_mode()
    def cost(self) -> float:
        """Time of our products over time of torch's, a few of each in turn: far below 1 on a processor that
        they were made for, and no more than a guess elsewhere.
        """
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(_TRIAL_SIZE, _TRIAL_SIZE, generator=generator).bfloat16()
        plain, packed, ours, theirs = matrix.float(), pack(matrix, torch.bfloat16), 0.0, 0.0
        for rows in (1, 4, 8):
            x = torch.randn(rows, _TRIAL_SIZE, generator=generator)
            pairs = [
                (_seconds(partial(self.linear, x, packed, None)), _seconds(partial(F.linear, x, plain)))
                for _ in range(_TRIALS)
            ]
            ours, theirs = ours + min(a for a, _ in pairs), theirs + min(b for _, b in pairs)
        return ours / theirs

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``, float32 ``[..., outputs]`` of float32 ``[..., inputs]``."""
        x = x.contiguous()
        inputs = x.shape[-1]
        out = x.new_empty((*x.shape[:-1], weight.outputs))
        self._linear(
            self._threads,
            x.data_ptr(),
            weight.blocks.data_ptr(),
            weight.kind,
            None if bias is None else bias.data_ptr(),
            out.data_ptr(),
            x.numel() // inputs,
            inputs,
            weight.outputs,
        )
        return out

    def gated_mlp(self, x: Tensor, gate_up: Tensor, down: Weight) -> Tensor:
        """``down(silu(gate(x)) * up(x))``; ``gate_up``: of :func:`pack_pair`, typed as ``down``."""
        x = x.contiguous()
        inputs, width = x.shape[-1], down.blocks.shape[1]
        rows = x.numel() // inputs
        middle, out = x.new_empty((rows, width)), torch.empty_like(x)
        self._gated_mlp(
            self._threads,
            x.data_ptr(),
            gate_up.data_ptr(),
            down.blocks.data_ptr(),
            down.kind,
            middle.data_ptr(),
            out.data_ptr(),
            rows,
            inputs,
            width,
        )
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension."""
        x = x.contiguous()
        out = torch.empty_like(x)
        size = x.shape[-1]
        self._rms_norm(
            self._threads, x.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), x.numel() // size, size
        )
        return out

    def rotate_and_write(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor
    ) -> None:
        """Rotate queries and keys of ``qkv`` ``[N, heads + 2 * kv_heads, dim]`` in place by ``cos`` and
        ``sin`` ``[N, dim]``; write keys and values to ``slots`` int64 ``[N]`` of the cache.
        """
        rows, heads, dim = qkv.shape
        kv_heads = keys.shape[1]
        self._rotate_and_write(
            self._threads,
            qkv.data_ptr(),
            cos.contiguous().data_ptr(),
            sin.contiguous().data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            slots.data_ptr(),
            rows,
            heads - 2 * kv_heads,
            kv_heads,
            dim,
        )

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, seen: Seen, scale: float
    ) -> None:
        """Fill rows ``seen.rows`` of ``out`` ``[N, heads, dim]``. ``query`` ``[N, heads, dim]``, the last
        dimension dense; ``keys`` and ``values`` ``[slots, kv_heads, dim]``. float32.
        """
        kv_heads, dim = keys.shape[1:]
        self._attend(
            self._threads,
            query.data_ptr(),
            query.stride(0),
            query.stride(1),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            seen.rows.data_ptr(),
            seen.sequences.data_ptr(),
            seen.first.data_ptr(),
            seen.tree_starts.data_ptr(),
            seen.masks.data_ptr(),
            seen.table.data_ptr(),
            seen.table.shape[1],
            len(seen.rows),
            query.shape[1],
            kv_heads,
            dim,
            scale,
        )


def _seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Seen:
    """What M rows attend to: logical slots ``first`` to ``tree_starts`` - 1 of their sequence, and the slots
    from ``tree_starts`` on whose bit is set in ``masks``. All int64 ``[M]``; ``rows``: which of the packed
    row. ``table`` int64 ``[S, slots]``: the physical slot of every logical one.
    """

    rows: Tensor
    sequences: Tensor
    first: Tensor
    tree_starts: Tensor
    masks: Tensor
    table: Tensor
