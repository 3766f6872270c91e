"""Calls into the compiled library (``cpu.cpp``) with tensors. Callers must pass correct shapes and dtypes."""

from __future__ import annotations

import ctypes
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.build import load_library

log = logging.getLogger(__name__)

_TRIAL_SIZE, _TRIALS, _TOO_SLOW = 1024, 15, 1.3
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_P, _I, _N, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "specvlm_workers": (_N,),
    "specvlm_dismiss": (_P,),
    "specvlm_linear": (_P, _P, _P, _P, _I),
    "specvlm_gated_mlp": (_P, _P, _P, _P, _P, _I),
    "specvlm_rms_norm": (_P, _P, _P, _F, _P, _I, _I),
    "specvlm_rotate_and_write": (*(_P,) * 7, _I, _P),
    "specvlm_attend": (_P, _P, _I, _I, *(_P,) * 5),
    "specvlm_layers": (_P, _P, _I, _P, _P, _I, *(_P,) * 6),
    "specvlm_grow": (_P, _P, _P),
}


class Product(ctypes.Structure):
    """A linear layer in the library's representation."""

    _fields_ = [("w", _P), ("bias", _P), ("kind", _I), ("inputs", _I), ("outputs", _I)]

    @classmethod
    def of(cls, blocks: Tensor, outputs: int, bias: Tensor | None = None) -> Product:
        """Describe a linear layer. The result is valid as long as the tensors are alive."""
        added = None if bias is None else bias.data_ptr()
        return cls(blocks.data_ptr(), added, _KINDS[blocks.dtype], blocks.shape[1], outputs)


class Heads(ctypes.Structure):
    """The numbers of query and KV heads, their size, and the scale of the scores."""

    _fields_ = [("queries", _I), ("kv", _I), ("dim", _I), ("scale", _F)]


class LayerParts(ctypes.Structure):
    """A whole decoder layer in the library's representation."""

    _fields_ = [
        ("norm", _P),
        ("mlp_norm", _P),
        ("eps", _F),
        ("mlp_eps", _F),
        ("qkv", Product),
        ("out", Product),
        ("gate_up", Product),
        ("down", Product),
        ("heads", Heads),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("row", "seq", "first", "tree", "mask", "table")),
        ("stride", _I),
        ("rows", _I),
    ]


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix ``[outputs, inputs]`` as blocks of outputs ``[blocks, inputs, wide]``, padded with zeros."""

    blocks: Tensor
    outputs: int

    def dense(self) -> Tensor:
        """Return the unpacked matrix, float32 ``[outputs, inputs]``."""
        return self.blocks.transpose(1, 2).flatten(0, 1)[: self.outputs].float()


def narrowest(*matrices: Tensor) -> torch.dtype:
    """Return bfloat16 or float16 if it represents all matrices exactly, otherwise float32.

    It does for checkpoints that were stored in that dtype.
    """
    for kind in (torch.bfloat16, torch.float16):
        # Check first rows before whole matrices: nearly all mismatches already show there.
        parts = (*(matrix[:1] for matrix in matrices), *matrices)
        if all(torch.equal(part.to(kind).to(part.dtype), part) for part in parts):
            return kind
    return torch.float32


def _blocks(matrix: Tensor, kind: torch.dtype, size: int) -> Tensor:
    outputs, inputs = matrix.shape
    padded = torch.zeros(-(-outputs // size) * size, inputs, dtype=kind)
    padded[:outputs] = matrix
    return padded.view(-1, size, inputs).transpose(1, 2).contiguous()


class Kernels:
    """The compiled CPU kernels and their threads.

    ``threads`` threads work on one call, the caller's included. They belong to this object and end with it.
    ``build`` identifies the library: it differs by source, compiler and processor.
    """

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self.build = Path(library._name).stem
        library.specvlm_wide.restype = _I
        self._wide = int(library.specvlm_wide())  # outputs per block
        for name, signature in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = signature, None
        library.specvlm_workers.restype = _P
        self._workers = library.specvlm_workers(threads)
        weakref.finalize(self, library.specvlm_dismiss, self._workers)
        self._linear, self._gated_mlp = library.specvlm_linear, library.specvlm_gated_mlp
        self._rms_norm, self._attend = library.specvlm_rms_norm, library.specvlm_attend
        self._rotate_and_write, self._layers = library.specvlm_rotate_and_write, library.specvlm_layers
        self._grow = library.specvlm_grow

    @classmethod
    def load(cls, folder: Path) -> Kernels | None:
        """Load the kernels, compiling them into ``folder`` the first time.

        Returns ``None`` if they are not available or do not pay.
        """
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
        """Return the time of these products relative to torch's, a few of each measured alternately.

        It is far below 1 on processors that the kernels were optimised for, and only a rough estimate on
        others.
        """
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(_TRIAL_SIZE, _TRIAL_SIZE, generator=generator).bfloat16()
        plain, packed, ours, theirs = matrix.float(), self.pack(matrix, torch.bfloat16), 0.0, 0.0
        product = Product.of(packed.blocks, packed.outputs)
        for rows in (1, 4, 8):
            x = torch.randn(rows, _TRIAL_SIZE, generator=generator)
            pairs = [
                (_seconds(partial(self.linear, x, product)), _seconds(partial(F.linear, x, plain)))
                for _ in range(_TRIALS)
            ]
            ours, theirs = ours + min(a for a, _ in pairs), theirs + min(b for _, b in pairs)
        return ours / theirs

    def pack(self, matrix: Tensor, kind: torch.dtype) -> Weight:
        """Pack a matrix ``[outputs, inputs]``."""
        return Weight(_blocks(matrix, kind, self._wide), len(matrix))

    def pack_pair(self, gate: Tensor, up: Tensor, kind: torch.dtype) -> Tensor:
        """Pack two matrices ``[outputs, inputs]`` into blocks ``[blocks, inputs, wide]``.

        Each block has the same number of outputs of both, those of ``gate`` first.
        """
        return torch.cat([_blocks(one, kind, self._wide // 2) for one in (gate, up)], dim=-1)

    def linear(self, x: Tensor, product: Product) -> Tensor:
        """Return ``x @ weight.T + bias``, float32 ``[..., outputs]``, for float32 ``[..., inputs]``."""
        x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], product.outputs))
        rows = x.numel() // x.shape[-1]
        self._linear(self._workers, ctypes.byref(product), x.data_ptr(), out.data_ptr(), rows)
        return out

    def gated_mlp(self, x: Tensor, gate_up: Product, down: Product) -> Tensor:
        """Return ``down(silu(gate(x)) * up(x))``; ``gate_up``: from :meth:`pack_pair`, the MLP's width."""
        x = x.contiguous()
        out = torch.empty_like(x)
        parts = (ctypes.byref(gate_up), ctypes.byref(down))
        self._gated_mlp(self._workers, *parts, x.data_ptr(), out.data_ptr(), x.numel() // x.shape[-1])
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return ``x / sqrt(mean(x²) + eps) * weight`` over the last dimension."""
        x = x.contiguous()
        out, size = torch.empty_like(x), x.shape[-1]
        at = (x.data_ptr(), weight.data_ptr(), eps, out.data_ptr())
        self._rms_norm(self._workers, *at, x.numel() // size, size)
        return out

    def rotate_and_write(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, slots: Tensor, heads: Heads
    ) -> None:
        """Rotate queries and keys of ``qkv`` ``[N, heads + 2 * kv_heads, dim]`` in place by ``cos`` and
        ``sin`` ``[1, N, dim]``; write keys and values to ``slots`` int64 ``[N]`` of the cache.
        """
        used = (qkv, cos.contiguous(), sin.contiguous(), keys, values, slots)
        pointers = (tensor.data_ptr() for tensor in used)
        self._rotate_and_write(self._workers, *pointers, len(qkv), ctypes.byref(heads))

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, seen: Seen, scale: float
    ) -> None:
        """Fill rows ``seen.rows`` of ``out`` ``[N, heads, dim]`` with their attention, in float32.

        ``query`` ``[N, heads, dim]``, contiguous in the last dimension; ``keys`` and ``values``
        ``[slots, kv_heads, dim]``.
        """
        heads = Heads(query.shape[1], *keys.shape[1:], scale)
        self._attend(
            self._workers,
            query.data_ptr(),
            query.stride(0),
            query.stride(1),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            ctypes.byref(seen.pointers),
            ctypes.byref(heads),
        )

    def layers(
        self,
        layers: Seq[LayerParts],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        keys: Seq[Tensor],
        values: Seq[Tensor],
        slots: Tensor,
        seen: Seq[Seen],
    ) -> Tensor:
        """Run whole layers, one after the other, over rows ``x`` ``[1, N, hidden]``.

        All rows must be in each layer's ``seen``; the other arguments are as above.
        """
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        out = torch.empty_like(x)
        self._layers(
            self._workers,
            _pointers(map(ctypes.addressof, layers)),
            len(layers),
            x.data_ptr(),
            out.data_ptr(),
            x.shape[1],
            cos.data_ptr(),
            sin.data_ptr(),
            _pointers(map(Tensor.data_ptr, keys)),
            _pointers(map(Tensor.data_ptr, values)),
            slots.data_ptr(),
            _pointers(ctypes.addressof(one.pointers) for one in seen),
        )
        return out

    def grow(self, draft: Any, growth: Any) -> None:
        """Grow draft trees; takes pointers to the structures that :mod:`engine.kernels.grow` fills in."""
        self._grow(self._workers, draft, growth)


def _pointers(addresses: Iterable[int]) -> ctypes.Array[ctypes.c_void_p]:
    found = list(addresses)
    return (_P * len(found))(*found)


def _seconds(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Seen:
    """The slots that M rows attend to.

    These are the logical slots ``first`` to ``tree_starts`` - 1 of their sequence, and the slots from
    ``tree_starts`` on whose bit is set in ``masks``. All int64 ``[M]``; ``rows``: indices in the packed row.
    ``table`` int64 ``[S, slots]``: the physical slot of every logical one.
    """

    rows: Tensor
    sequences: Tensor
    first: Tensor
    tree_starts: Tensor
    masks: Tensor
    table: Tensor
    pointers: _Rows = field(init=False)

    def __post_init__(self) -> None:
        used = (self.rows, self.sequences, self.first, self.tree_starts, self.masks, self.table)
        pointers = _Rows(*(one.data_ptr() for one in used), self.table.shape[1], len(self.rows))
        object.__setattr__(self, "pointers", pointers)
