"""The draft without pages, trees or batches: every state from one dense run over its whole explicit history.

Features and embeddings come from the transformers model itself, whole prompts and pictures at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from compressors.base import Compressor, Picture
from engine.draft.files import load_draft
from processing.prompt import ImageInput
from tests.golden.reference import Golden

Path_ = tuple[int, ...]
"""Tokens from a child of the root down to a node."""


Way = tuple[torch.Tensor, Compressor, Picture]
"""Which tokens of a sequence are a picture's, how they are compressed, and their grids."""


@dataclass(slots=True)
class Seen:
    """What a draft has been shown of one sequence: the tokens ``rows``, in order of its slots.

    ``features`` and ``embeddings`` ``[N, hidden]`` of all tokens; the feature of row ``i`` is that of token
    ``i - 1``, zeros for the first. ``positions``: rotary ones, ``[N]`` or ``[3, N]``.
    """

    rows: list[int]
    features: torch.Tensor
    embeddings: torch.Tensor
    positions: torch.Tensor


class DenseDraft:
    def __init__(self, golden: Golden, folder: Path) -> None:
        self._model = golden.model
        config = golden.model.config.get_text_config()
        loaded = load_draft(folder, config, attn_implementation="sdpa")
        self._module, self._vocabulary = loaded.module, loaded.vocabulary
        self._module.eval()
        head = golden.model.get_output_embeddings()
        weight, ids = head.weight.detach(), self._vocabulary
        self._head = weight if ids is None else weight[ids]

    @torch.inference_mode()
    def target(
        self,
        token_ids: list[int],
        images: list[ImageInput],
        given: dict[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The target's true features, shifted by one, its embeddings with the pictures in place, and its
        positions. ``given``: what transformers' own processor says of the pictures.
        """
        ids = torch.tensor([token_ids])
        inputs: dict[str, Any] = {"input_ids": ids}
        for name in images[0].tensors if images else ():
            arrays = [image.tensors[name] for image in images]
            inputs[name] = torch.from_numpy(np.concatenate(arrays)) if given is None else given[name]
        positions = torch.arange(len(token_ids))
        if hasattr(self._model.model, "get_rope_index"):
            inputs["mm_token_type_ids"] = kinds = (ids == self._model.config.image_token_id).int()
            grids = inputs.get("image_grid_thw")
            found, _ = self._model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
            positions = found[:, 0]
        caught: list[torch.Tensor] = []
        layer = self._model.get_decoder().layers[0]
        hook = layer.register_forward_pre_hook(
            lambda _, args, kwargs: caught.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        hidden = self._model.model(**inputs).last_hidden_state[0]
        hook.remove()
        return torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]]), caught[0][0], positions

    @torch.inference_mode()
    def run(self, seen: Seen, path: Path_ = (), states: Any = ()) -> tuple[torch.Tensor, Any]:
        """Output states ``[len(rows) + len(path), hidden]`` and the layer's cache, after all that was seen
        and then ``path``, whose inputs are ``states``: the outputs before each of its tokens.
        """
        embeddings, positions = seen.embeddings[seen.rows], seen.positions[..., seen.rows]
        features = seen.features[seen.rows]
        if path:
            own = self._model.get_input_embeddings()(torch.tensor(path))
            embeddings = torch.cat([embeddings, own])
            features = torch.cat([features, torch.stack(states)])
            below = positions[..., -1:] + torch.arange(1, len(path) + 1)
            positions = torch.cat([positions, below], dim=-1)
        cache = DynamicCache()
        told = positions.unsqueeze(-2)
        out = self._module(features[None], embeddings[None], told, past_key_values=cache)
        return out[0], cache.layers[0]

    def kv(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[len(rows), kv_heads, head_dim]``."""
        layer = self.run(seen)[1]
        return layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)

    @torch.inference_mode()
    def compressed_kv(
        self,
        token_ids: list[int],
        images: list[ImageInput],
        given: dict[str, torch.Tensor],
        ways: list[Way],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a sequence with every picture compressed whole, each in its own way."""
        features, embeddings, positions = self.target(token_ids, images, given)
        inputs = self._module.join(features, embeddings)
        places = [torch.arange(len(token_ids))]
        values, stays = [inputs], torch.ones(len(token_ids), dtype=torch.bool)
        for rows, compressor, picture in ways:
            (done,) = compressor(inputs[rows], [picture])
            stays[rows] = False
            places.append(rows[done.sources])
            values.append(done.values)
        places[0], values[0] = places[0][stays], inputs[stays]
        order = torch.cat(places).argsort(stable=True)
        cache = DynamicCache()
        told = positions[..., torch.cat(places)[order]].unsqueeze(-2)
        self._module.run(torch.cat(values)[order][None], told, past_key_values=cache)
        layer = cache.layers[0]
        return layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)

    def tree(
        self, seen: Seen, *, num_steps: int, topk: int, own_steps: int, own_topk: int
    ) -> dict[Path_, float]:
        """EAGLE-2's expansion: cumulative log-probability of every candidate.

        ``num_steps`` and ``topk`` are the round's, the others this sequence's own limits.
        """
        width = min(topk, len(self._head))  # of a frontier, too
        scores: dict[Path_, float] = {}
        states: dict[Path_, torch.Tensor] = {(): self.run(seen)[0][-1]}
        frontier: list[Path_] = [()]
        for depth in range(1, num_steps + 1):
            level: list[Path_] = []
            for node in frontier:
                if node:
                    before = [states[node[:i]] for i in range(len(node))]
                    states[node] = self.run(seen, node, before)[0][-1]
                for token_id, log_prob in self._best(states[node], min(topk, own_topk)):
                    if depth <= own_steps:
                        scores[*node, token_id] = scores.get(node, 0.0) + log_prob
                        level.append((*node, token_id))
            frontier = sorted(level, key=lambda path: scores[path], reverse=True)[:width]
        return scores

    @torch.inference_mode()
    def _best(self, state: torch.Tensor, count: int) -> list[tuple[int, float]]:
        log_probs = torch.log_softmax(self._head @ state, dim=-1)
        best = log_probs.topk(min(count, len(log_probs)))
        ids = best.indices if self._vocabulary is None else self._vocabulary[best.indices]
        return list(zip(ids.tolist(), best.values.tolist(), strict=True))
