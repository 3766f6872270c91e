"""The draft model at run time: its weights on the target's device, and its head.

Runs packed rows over a paged KV cache and scores continuations; knows nothing of trees, sequences or pages.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressors.elastic import Elastic
from engine.attention import ATTENTION_NAME, AttentionContext
from engine.checkpoint import still_rope
from engine.draft.files import DraftConfig, fingerprint
from engine.draft.published import load_any_draft
from engine.graphs import Capture, RowGraphs
from engine.host.cpus import torch_threads
from engine.kernels.choose import install_parts
from engine.kernels.grow import Grower
from engine.kernels.install import install
from engine.kernels.modules import KernelLinear
from engine.kernels.onednn import can_pack, pack_linears
from engine.kv_cache import KVCache, KVShape
from engine.target import TargetModel

log = logging.getLogger(__name__)

_SAMPLES = 64


class DraftModel:
    """An EAGLE draft together with its target.

    ``vocabulary``: int64 ``[V]``, the token ids of the head's rows; ``None`` if they are the target's own.
    ``compressor``: the picture compressor trained with it, if any. ``version``: identifies the weights of
    both.
    """

    def __init__(
        self,
        module: Any,
        head: nn.Module,
        vocabulary: torch.Tensor | None,
        target: TargetModel,
        compressor: Elastic | None = None,
    ) -> None:
        self.device, self.dtype = target.device, target.dtype
        self._num_threads = target.num_threads
        self.feature_size, self.state_size = int(module.feature_size), int(module.config.hidden_size)
        self.vocabulary = None if vocabulary is None else vocabulary.to(self.device)
        self._module = module.to(self.device).eval().requires_grad_(False)
        still_rope(self._module)
        # Convert only the weights: with rotary frequencies in half precision, the angles of distant positions
        # would be off by whole turns.
        for parameter in self._module.parameters():
            parameter.data = parameter.data.to(self.dtype)
        self.compressor = None if compressor is None else compressor.to(self.device, self.dtype).eval()
        self.version = _version(self._module, self.compressor)
        self._head = head.to(self.device, self.dtype).requires_grad_(False)
        self.num_weights = sum(parameter.numel() for parameter in self._module.parameters())
        self.kernels, self.attention = target.kernels, target.attention
        self.grower: Grower | None = None
        self._graphs: RowGraphs | None = None
        if self.kernels is not None:
            install(self._module, self.kernels)
            if isinstance(self._head, nn.Linear):
                self._head = KernelLinear(self._head.weight, self._head.bias, self.kernels)
            self.grower = Grower.of(self._module, self._head, target.embedding, self.vocabulary, self.kernels)
        elif self.attention is not None:
            install_parts(self._module, self.attention)
        elif can_pack(self.device, self.dtype):
            pack_linears(self._module)

    @classmethod
    def load(cls, folder: Path, target: TargetModel, target_folder: Path) -> DraftModel:
        """Load a draft in any layout that :mod:`engine.draft.published` supports.

        Raises ``ModelLoadError`` if it does not match the target. A draft trained for other weights of the
        same shape is loaded with a warning: it may be slow, but the output is still correct.
        """
        loaded = load_any_draft(folder, target.adapter.text_config, attn_implementation=ATTENTION_NAME)
        if loaded.config is not None and target_folder.is_dir():
            _compare(loaded.config, folder, target_folder)
        if loaded.feature_layers is not None:
            target.tap(loaded.feature_layers)
        head: nn.Module
        if loaded.head_weight is None:
            head = target.head_of(loaded.vocabulary)
        else:
            rows, width = loaded.head_weight.shape
            head = nn.Linear(width, rows, bias=False, device="meta")
            head.weight = nn.Parameter(loaded.head_weight)
        return cls(loaded.module, head, loaded.vocabulary, target, loaded.compressor)

    @property
    def kv_shape(self) -> KVShape:
        return KVShape.of(self._module.config, self.dtype)

    @torch.inference_mode()
    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """Turn target features ``[N, feature_size]`` into states ``[N, hidden]``."""
        states: torch.Tensor = self._module.fuse(features)
        return states

    @torch.inference_mode()
    def join(self, states: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the input of the layer, ``[N, D]``, from states of tokens ``i - 1`` and embeddings of tokens
        ``i``, both ``[N, hidden]``.
        """
        joined: torch.Tensor = self._module.join(states, embeddings)
        return joined

    def capture(self, cache: KVCache, max_num_seqs: int, max_pages: int, axes: int, capture: Capture) -> None:
        """Capture CUDA graphs over ``cache`` that run small batches from now on.

        Raises ``RuntimeError`` if that fails.
        """
        nothing = torch.zeros(1, self.state_size, device=self.device, dtype=self.dtype)
        graphs = RowGraphs(
            lambda joined, context: [self.run(context, joined)],
            cache,
            max_pages,
            axes,
            width=self.join(nothing, nothing).shape[1],
            dtype=self.dtype,
            capture=capture,
        )
        graphs.prepare(max_num_seqs)
        self._graphs = graphs

    @torch.inference_mode()
    def forward(self, context: AttentionContext, joined: torch.Tensor) -> torch.Tensor:
        """Return the next states ``[N, hidden]`` of a row; writes its KV."""
        found = None if self._graphs is None else self._graphs.forward(context, joined)
        return self.run(context, joined) if found is None else found[0]

    @torch.inference_mode()
    def run(self, context: AttentionContext, joined: torch.Tensor) -> torch.Tensor:
        """``forward`` without CUDA graphs."""
        positions = context.batch.positions.unsqueeze(-2)
        with torch_threads(self._num_threads) if context.groups else nullcontext():
            out: torch.Tensor = self._module.run(joined[None], positions, context=context)
        return out[0]

    @torch.inference_mode()
    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rotary cosines and sines ``[N, dim]`` of positions, int64 ``[N]`` or ``[3, N]``."""
        like = torch.empty(0, device=self.device, dtype=self.dtype)
        cos, sin = self._module.rotary(like, positions.unsqueeze(-2))
        return cos[0], sin[0]

    @torch.inference_mode()
    def log_probs(self, states: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities over the draft's vocabulary, float32 ``[R, V]``."""
        logits: torch.Tensor = self._head(self._module.read_out(states))
        return logits.float().log_softmax(dim=-1)

    def token_ids(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the target's token ids for indices of head rows."""
        return indices if self.vocabulary is None else self.vocabulary[indices]


def _version(*modules: nn.Module | None) -> bytes:
    """Return a digest of the names, shapes and some elements of all tensors.

    That is enough to tell drafts apart, and quick for any size.
    """
    digest = hashlib.blake2b(digest_size=16)
    for module in modules:
        for name, tensor in () if module is None else module.state_dict().items():
            step = max(1, tensor.numel() // _SAMPLES)
            samples = tensor.detach().flatten()[::step].float().cpu().numpy()
            digest.update(f"{name}:{list(tensor.shape)}:".encode() + samples.tobytes())
    return digest.digest()


def _compare(config: DraftConfig, folder: Path, target_folder: Path) -> None:
    if fingerprint(target_folder) != config.target_fingerprint:
        log.warning(
            "the draft in %s was trained for other weights (%s) than those in %s: expect few accepted drafts",
            folder,
            config.target,
            target_folder,
        )
