"""Triton kernels for parts of decoder layers on CUDA.

Between the products of a layer, most model families launch some thirty small kernels, each of which reads and
writes all rows. Here there are three: a norm, the rotation with the write to KV, and the gate of the MLP.
Values are rounded at the same points as in the norms and gates of Llama-like models. Imported only where it
is used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from engine.attention import AttentionContext, attend, honoured
from engine.kernels.likeness import eps_of

_GATE_BLOCK = 1024


class TritonNorm(nn.Module):
    """An RMS norm: ``x / rms(x) * weight``, with the sum of squares in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight
        eps = eps_of(norm)
        assert eps is not None
        self.eps = eps

    def forward(self, inputs: Tensor) -> Tensor:
        dense, size = inputs.contiguous(), inputs.shape[-1]
        out = torch.empty_like(dense)
        block = triton.next_power_of_2(size)
        _norm[(dense.numel() // size,)](
            dense, self.weight, out, self.eps, SIZE=size, BLOCK=block, num_warps=max(1, min(8, block // 512))
        )
        return out


class TritonMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))`` without biases, from ``gate_proj``, ``up_proj`` and ``down_proj``."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        joined = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.gate_up, self.down = nn.Parameter(joined, requires_grad=False), mlp.down_proj.weight

    def forward(self, inputs: Tensor) -> Tensor:
        gated = F.linear(inputs, self.gate_up)
        size = gated.shape[-1] // 2
        out = gated.new_empty(*gated.shape[:-1], size)
        _gate[(out.numel() // size, triton.cdiv(size, _GATE_BLOCK))](gated, out, SIZE=size, BLOCK=_GATE_BLOCK)
        return F.linear(out, self.down)


class TritonSelfAttention(nn.Module):
    """Grouped-query attention with rotary positions (half-split), made from a transformers layer.

    The layer must have ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``. ``window``: the number of keys that
    a query sees, ``None`` for all.
    """

    def __init__(self, layer: Any, window: int | None) -> None:
        super().__init__()
        parts = (layer.q_proj, layer.k_proj, layer.v_proj)
        self.layer_idx, self._dim = int(layer.layer_idx), int(layer.head_dim)
        self._heads, self._kv_heads = (part.out_features // self._dim for part in parts[:2])
        self._scaling, self._window = layer.scaling, window
        self.qkv = nn.Parameter(torch.cat([part.weight for part in parts]), requires_grad=False)
        biases = [part.bias for part in parts]
        self.bias = None if biases[0] is None else nn.Parameter(torch.cat(biases), requires_grad=False)
        self.o_proj: nn.Linear = layer.o_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        context: AttentionContext | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Run on ``[1, N, hidden]``, as the layer it replaces.

        Raises ``RuntimeError`` for arguments that it would have to ignore.
        """
        context = honoured(context, attention_mask, 0.0, others)
        qkv, rows = F.linear(hidden_states, self.qkv, self.bias), hidden_states.shape[1]
        query = qkv.new_empty(rows, self._heads, self._dim)
        _rotate_and_write[(rows, self._heads + 2 * self._kv_heads)](
            qkv,
            *(angles.contiguous() for angles in position_embeddings),
            query,
            context.cache.keys[self.layer_idx],
            context.cache.values[self.layer_idx],
            context.batch.slots,
            HEADS=self._heads,
            KV_HEADS=self._kv_heads,
            DIM=self._dim,
            BLOCK=triton.next_power_of_2(self._dim // 2),
            num_warps=1,
        )
        out = attend(context, self.layer_idx, query, self._scaling, self._window)
        return self.o_proj(out.reshape(1, rows, -1)), None


@triton.jit
def _norm(inputs, weight, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Normalise ``inputs`` ``[N, SIZE]``, one program per row."""
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    place = tl.program_id(0).to(tl.int64) * SIZE + column
    x = tl.load(inputs + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    normed = (x * scale).to(out.dtype.element_ty).to(tl.float32)
    own = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (own * normed).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate(inputs, out, SIZE: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute ``silu(inputs[:, :SIZE]) * inputs[:, SIZE:]`` for ``[N, 2 * SIZE]``."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    gate = tl.load(inputs + row * 2 * SIZE + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(inputs + row * 2 * SIZE + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    opened = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * SIZE + column, (opened * up).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize_on_alignment=("slots",))  # a view that begins anywhere in one tensor
def _rotate_and_write(  # type: ignore[no-untyped-def]
    qkv,  # [N, HEADS + 2 * KV_HEADS, DIM]
    cos,  # [N, DIM]
    sin,
    query,  # [N, HEADS, DIM]
    keys,  # [slots, KV_HEADS, DIM]
    values,
    slots,  # int64 [N]
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rotate queries and keys and write keys and values to the row's slot, one program per row and head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = DIM // 2
    column = tl.arange(0, BLOCK)
    inside = column < half
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * DIM + column
    low = tl.load(source, mask=inside, other=0.0)
    high = tl.load(source + half, mask=inside, other=0.0)
    slot = tl.load(slots + row)
    if head < HEADS + KV_HEADS:
        angle = row * DIM + column
        rotated_low = _turned(
            low, -high, tl.load(cos + angle, mask=inside), tl.load(sin + angle, mask=inside), query
        )
        angle += half
        rotated_high = _turned(
            high, low, tl.load(cos + angle, mask=inside), tl.load(sin + angle, mask=inside), query
        )
        if head < HEADS:
            target = query + (row * HEADS + head) * DIM + column
        else:
            target = keys + (slot * KV_HEADS + head - HEADS) * DIM + column
        tl.store(target, rotated_low, mask=inside)
        tl.store(target + half, rotated_high, mask=inside)
    else:
        target = values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * DIM + column
        tl.store(target, low, mask=inside)
        tl.store(target + half, high, mask=inside)


@triton.jit
def _turned(x, across, cos, sin, like):  # type: ignore[no-untyped-def]
    """Return ``x * cos + across * sin``, with each product rounded before the addition."""
    along = (x.to(tl.float32) * cos.to(tl.float32)).to(like.dtype.element_ty).to(tl.float32)
    side = (across.to(tl.float32) * sin.to(tl.float32)).to(like.dtype.element_ty).to(tl.float32)
    return (along + side).to(like.dtype.element_ty)
