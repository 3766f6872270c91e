"""The target as a teacher: loaded as by transformers, frozen, and run live.

It provides what the engine's draft gets when serving: input embeddings with pictures merged in, and hidden
states after the final norm. It uses no paged attention: the dialogues packed into a row are told apart by
positions that start again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from compressors.base import Grid
from engine.adapters import adapter_for
from engine.adapters.base import Adapter
from engine.checkpoint import (
    load_whole,
    read_config,
    read_eos_token_ids,
    refuse_row_dependent,
    resolve_dtype,
    still_rope,
)
from engine.config import Device, DType, EngineConfig
from engine.errors import ModelLoadError
from processing.pictures import split_runs
from processing.prompt import ImageInput, Prompt
from training.batches import Batch


@dataclass(frozen=True, slots=True)
class Head:
    """Some rows of the target's LM head: ``weight`` float32 ``[V, hidden]``, ``bias`` float32 ``[V]``."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        """Return logits ``[..., V]``, in the precision that autocast asks for."""
        return F.linear(states, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Seen:
    """Outputs of the teacher for a batch.

    ``embeddings``: input embeddings with pictures merged in, and ``features``: hidden states after the final
    norm, both float32 ``[B, N, hidden]``. ``positions``: rotary positions, int64 ``[B, N]``, or ``[3, B, N]``
    for a family with three axes. ``scores`` float32 ``[B, N]``: how much the vision tower attends to each
    token, 0 for text; ``None`` if that is not known.
    """

    embeddings: Tensor
    features: Tensor
    positions: Tensor
    scores: Tensor | None


class Teacher:
    """The frozen target; create it with ``Teacher.load``."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, device: torch.device) -> None:
        self._adapter, self.device = adapter, device
        self._embed: nn.Module = model.get_input_embeddings()
        self._head: nn.Module = model.get_output_embeddings()

    @classmethod
    def load(cls, folder: Path, dtype: DType, device: torch.device) -> Teacher:
        """Load the target. Raises ``ModelLoadError`` for a family that is not supported.

        These are families that the engine does not serve, and those with bidirectional attention within a
        picture, because packed rows are causal here.
        """
        where: Device = "cpu" if device.type == "cpu" else "cuda"
        config = EngineConfig(model=str(folder), dtype=dtype, device=where)
        hf_config = read_config(config)
        kind = resolve_dtype(config, hf_config)
        adapter_type = adapter_for(hf_config.model_type)
        model = load_whole(adapter_type, str(folder), dtype=kind, attn_implementation="sdpa").to(device)
        adapter = adapter_type(model)
        refuse_row_dependent(adapter.text_config)
        still_rope(adapter.text_model)
        if adapter.longest_block:
            raise ModelLoadError(f"training a draft for {hf_config.model_type} is not supported")
        return cls(model, adapter, device)

    @property
    def text_config(self) -> PretrainedConfig:
        return self._adapter.text_config

    @property
    def last_layer(self) -> nn.Module:
        layers = self._adapter.text_model.layers
        assert isinstance(layers, nn.ModuleList)
        return layers[-1]

    def grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """Return the grids of a picture's visual tokens."""
        return self._adapter.grids(image)

    @property
    def knows_attention(self) -> bool:
        """Whether ``scores`` are available."""
        return self._adapter.knows_attention

    def head(self, vocabulary: Tensor | None) -> Head:
        """Return the head for the token ids ``vocabulary``, int64 ``[V]``; for all of them if ``None``."""
        weight, bias = self._head.weight, self._head.bias
        assert isinstance(weight, Tensor)
        chosen = slice(None) if vocabulary is None else vocabulary.to(weight.device)
        return Head(weight[chosen].float(), bias[chosen].float() if isinstance(bias, Tensor) else None)

    def see(self, batch: Batch) -> Seen:
        """Compute the draft's inputs and its training targets."""
        embeddings, scores, more = self._inputs(batch)
        positions = self.positions(batch)
        # transformers tells sequences apart by the plain positions, which it expects before the three axes.
        told = positions if positions.dim() == 2 else torch.cat([batch.positions[None], positions])
        return Seen(embeddings.float(), self.features(embeddings, told, **more), positions, scores)

    def embed(self, batch: Batch) -> Tensor:
        """Return input embeddings ``[B, N, hidden]`` with pictures merged in."""
        return self._inputs(batch)[0]

    def positions(self, batch: Batch) -> Tensor:
        """Return rotary positions, int64 ``[B, N]`` or ``[3, B, N]``, counted from 0 in each dialogue."""
        runs = split_runs(batch.image_slots.tolist(), [image.num_tokens for image in batch.images])
        images = [
            msgspec.structs.replace(image, spans=spans)
            for image, spans in zip(batch.images, runs, strict=True)
        ]
        # All rows are treated as one prompt; subtracting its first position gives a dialogue's own positions.
        found = self._adapter.positions(Prompt(token_ids=batch.ids.flatten().tolist(), images=images))
        if found is None:
            return batch.positions
        counted = torch.from_numpy(found).to(batch.ids.device).view(3, *batch.ids.shape)
        first = torch.arange(batch.ids.shape[1], device=batch.ids.device) - batch.positions
        return counted - counted[0].gather(1, first)

    @torch.no_grad()
    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Return input embeddings, scores, and the text model's other inputs."""
        embeddings: Tensor = self._embed(batch.ids)
        scores = torch.zeros(batch.ids.shape, device=self.device) if self.knows_attention else None
        if not batch.images:
            return embeddings, scores, {}
        encoded = self._adapter.encode_images(batch.images)
        values = torch.cat([one.values for one in encoded]).to(embeddings)
        flat = embeddings.view(-1, embeddings.shape[-1])
        flat.index_copy_(0, batch.image_slots, values[:, : flat.shape[1]])
        if scores is not None:
            told = [one.scores for one in encoded if one.scores is not None]
            scores.view(-1)[batch.image_slots] = torch.cat(told).float()
        return embeddings, scores, self._adapter.image_inputs(batch.image_slots, values, batch.ids.shape)

    @torch.no_grad()
    def features(self, embeddings: Tensor, positions: Tensor, **more: Any) -> Tensor:
        """Return hidden states after the final norm, float32 ``[B, N, hidden]``.

        ``positions``: int64 ``[B, N]``, or ``[4, B, N]`` with the plain positions before the three axes.
        Where they do not increase by one, transformers assumes the border of two sequences, which then do not
        attend to each other; sliding windows follow these positions too.
        """
        output = self._adapter.text_model(
            inputs_embeds=embeddings, position_ids=positions, use_cache=False, **more
        )
        features: Tensor = output.last_hidden_state
        return features.float()


def stop_token_ids(folder: Path) -> frozenset[int]:
    """Return the tokens that end an answer."""
    return read_eos_token_ids(EngineConfig(model=str(folder)))
