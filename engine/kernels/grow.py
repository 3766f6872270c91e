"""Grows draft trees in one kernel call, for EAGLE drafts that run entirely on the CPU kernels.

With tensors, such a draft would spend as much time in Python between its small products as in the products.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from engine.draft.eagle import EagleDraft
from engine.kernels.cpu import Kernels, Product
from engine.kernels.layer import KernelLayer
from engine.kernels.modules import KernelLinear, KernelNorm

_P, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
Ints = npt.NDArray[np.int64]


class _Draft(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("embed_norm", "state_norm")),
        *((name, _F) for name in ("embed_eps", "state_eps")),
        *((name, Product) for name in ("fc", "head")),
        *((name, _P) for name in ("layer", "embeddings", "vocabulary")),
    ]


class _Growth(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("sequences", "width", "levels")),
        *((name, _P) for name in ("states", "limits", "starts", "table")),
        ("stride", _I),
        *((name, _P) for name in ("cos", "sin", "keys", "values", "token_ids", "parents", "scores")),
    ]


@dataclass(slots=True, frozen=True)
class Roots:
    """The starting points of S trees.

    ``states`` ``[S, hidden]``; ``limits`` int64 ``[S]``: children per node; ``starts`` int64 ``[S]``: the
    logical slot of node 0; ``table`` int64 ``[S, slots]``: the physical slot of each logical one.
    """

    states: Tensor
    limits: Ints
    starts: Ints
    table: Ints


class Grower:
    """Grows trees for one draft, whose embeddings are the rows of ``embedding``."""

    def __init__(
        self,
        module: Any,
        head: Any,
        embedding: nn.Embedding,
        vocabulary: Tensor | None,
        kernels: Kernels,
    ) -> None:
        self._kernels = kernels
        all_tokens = torch.arange(head.out_features) if vocabulary is None else vocabulary.contiguous()
        # Keep everything alive that the pointers refer to.
        self._kept = (module, head, embedding, all_tokens)
        norms = (module.embed_norm, module.state_norm)
        self._draft = _Draft(
            *(norm.weight.data_ptr() for norm in norms),
            *(norm.eps for norm in norms),
            *(module.fc.product, head.product),
            *(ctypes.addressof(module.layer.parts), embedding.weight.data_ptr(), all_tokens.data_ptr()),
        )

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the head."""
        return int(self._draft.head.outputs)

    @classmethod
    def of(
        cls, module: Any, head: Any, embed: Any, vocabulary: Tensor | None, kernels: Kernels
    ) -> Grower | None:
        """Return a grower, or ``None`` if the draft has an unsupported type or parts.

        The embeddings must be plain rows of a table.
        """
        names = ("layer", "fc", "embed_norm", "state_norm")
        parts = (module, embed, head, *(getattr(module, name, None) for name in names))
        kinds = (EagleDraft, nn.Embedding, *(KernelLinear, KernelLayer, KernelLinear, KernelNorm, KernelNorm))
        if any(type(part) is not kind for part, kind in zip(parts, kinds, strict=True)):
            return None
        if module.layer.window is not None or embed.weight.dtype != torch.float32:
            return None
        return cls(module, head, embed, vocabulary, kernels)

    def grow(
        self,
        roots: Roots,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        width: int,
        levels: int,
    ) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
        """Return token ids, parents and scores of all candidates ``[S, C]``, level by level.

        There are ``width`` candidates in level 1, at most ``num_outputs``, and ``width * width`` in each
        later level. ``angles``: cosines and sines ``[levels - 1, S, dim]`` of the levels that run;
        ``cache``: keys and values, to which those of the nodes are written.
        """
        states, (cos, sin) = roots.states.contiguous(), (one.contiguous() for one in angles)
        limits, starts, table = (
            np.ascontiguousarray(one) for one in (roots.limits, roots.starts, roots.table)
        )
        shape = (len(states), width + (levels - 1) * width * width)
        token_ids, parents = np.empty(shape, np.int64), np.empty(shape, np.int64)
        scores = np.empty(shape, np.float32)
        growth = _Growth(
            *(len(states), width, levels),
            states.data_ptr(),
            *(one.ctypes.data for one in (limits, starts, table)),
            table.shape[1],
            *(one.data_ptr() for one in (cos, sin, *cache)),
            *(one.ctypes.data for one in (token_ids, parents, scores)),
        )
        self._kernels.grow(ctypes.byref(self._draft), ctypes.byref(growth))
        return token_ids, parents, scores
