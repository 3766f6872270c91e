"""All layers of a text model as one kernel call, for steps of few rows.

Between two layers a model runs some Python, whose code and data have been evicted from the processor's caches
since the last time: this takes a hundred microseconds, and a layer of the demo model seven hundred.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from engine.attention import AttentionContext
from engine.kernels.cpu import Kernels
from engine.kernels.layer import KernelLayer
from engine.kernels.likeness import same
from engine.kernels.rows import FewRows

log = logging.getLogger(__name__)

_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}


class KernelStack:
    """A text model whose layers are all kernels.

    Like every kernel it is used only if verified to compute the same: for each number of position axes, the
    first step is also run by the model itself.
    """

    def __init__(self, model: Any, kernels: Kernels) -> None:
        self._model, self._kernels = model, kernels
        self._layers: list[KernelLayer] = list(model.layers)
        self._parts = [layer.parts for layer in self._layers]
        self._windows = [layer.window for layer in self._layers]
        self._indices = [layer.index for layer in self._layers]
        self._shown: dict[int, bool] = {}  # whether it is verified, by the number of dimensions of positions

    @classmethod
    def of(cls, model: torch.nn.Module, kernels: Kernels) -> KernelStack | None:
        """Return the stack, or ``None`` for a model with other layers or other parts than these."""
        parts = dict(model.named_children())
        fits = set(parts) == _PARTS and all(
            isinstance(layer, KernelLayer) for layer in parts["layers"].children()
        )
        return cls(model, kernels) if fits else None

    def forward(self, embeddings: Tensor, context: AttentionContext) -> Tensor | None:
        """Return hidden states ``[N, hidden]`` after the final norm; ``None`` if the model must run."""
        planned, axes = context.planned, context.batch.positions.dim()
        if context.groups or not isinstance(planned, FewRows):
            return None
        if axes not in self._shown:
            self._shown[axes] = self._is_shown(embeddings, context, planned)
        return self._run(embeddings, context, planned) if self._shown[axes] else None

    def _run(self, embeddings: Tensor, context: AttentionContext, planned: FewRows) -> Tensor:
        cos, sin = self._angles(embeddings, context)
        cache = context.cache
        out = self._kernels.layers(
            self._parts,
            embeddings[None],
            cos,
            sin,
            [cache.keys[index] for index in self._indices],
            [cache.values[index] for index in self._indices],
            context.batch.slots,
            [planned.seen(window) for window in self._windows],
        )
        normed: Tensor = self._model.norm(out)[0]
        return normed

    def _angles(self, embeddings: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        cos, sin = self._model.rotary_emb(embeddings[None], context.batch.positions.unsqueeze(-2))
        return cos, sin

    def _is_shown(self, embeddings: Tensor, context: AttentionContext, planned: FewRows) -> bool:
        wanted = self._model(
            inputs_embeds=embeddings[None],
            position_ids=context.batch.positions.unsqueeze(-2),
            use_cache=False,
            context=context,
        ).last_hidden_state[0]
        cos, _ = self._angles(embeddings, context)
        fits = cos.shape == (1, len(embeddings), self._layers[0].parts.heads.dim)
        shown = fits and same(self._run(embeddings, context, planned), wanted)
        if not shown:
            log.info("layers run one by one, because this model has other operations between them")
        return shown
