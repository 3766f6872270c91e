"""The target model: a Hugging Face model run as it is, with paged attention in its text model.

Knows how to load, embed, encode pictures, run a packed row and make logits. Knows no sequences, no
scheduling and no sampling.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from engine import attention
from engine.adapters import adapter_for
from engine.adapters.base import Adapter, Encoded
from engine.attention import AttentionContext
from engine.checkpoint import (
    load_narrow,
    load_weights,
    read_config,
    refuse_row_dependent,
    resolve_device,
    resolve_dtype,
    still_rope,
)
from engine.config import EngineConfig
from engine.errors import ModelLoadError
from engine.graphs import Capture, RowGraphs, captured
from engine.host.cache_folder import cache_folder
from engine.host.cpus import torch_threads
from engine.kernels.choose import attention_kernels, install_parts
from engine.kernels.cpu import Kernels
from engine.kernels.install import install
from engine.kernels.modules import KernelLinear
from engine.kernels.spans import AttentionKernels
from engine.kernels.stack import KernelStack
from engine.kv_cache import KVCache, KVShape
from engine.packing import PackedLinear, can_pack, pack_linears, packing_pays
from engine.visual_compression import compress, whole_of
from processing.prompt import ImageInput, Prompt

log = logging.getLogger(__name__)


class TargetOutput(NamedTuple):
    """Of a row of N: ``hidden`` ``[N, hidden]`` after the final norm, ``embeddings`` ``[N, hidden]`` that
    went in, ``features`` ``[N, size]`` for the draft: the same as ``hidden`` unless layers are tapped.
    """

    hidden: torch.Tensor
    embeddings: torch.Tensor
    features: torch.Tensor


class Tap:
    """Remembers what last went into a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.taken: torch.Tensor
        module.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self.taken = args[0] if args else kwargs["hidden_states"]


class TargetModel:
    """Weights, adapter and the three passes: encode pictures, forward a row, logits of some rows."""

    def __init__(
        self,
        adapter: Adapter,
        model: PreTrainedModel,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels | None = None,
        attention: AttentionKernels | None = None,
    ) -> None:
        self.adapter = adapter
        self.kernels, self.attention = kernels, attention
        self.family = str(model.config.model_type)
        self.load_seconds = 0.0
        self.device = device
        self.dtype = dtype
        self.num_threads = torch.get_num_threads()
        self._text_model = adapter.text_model
        self._stack = None if kernels is None else KernelStack.of(adapter.text_model, kernels)
        self._taps: list[Tap] = []
        self._graphs: RowGraphs | None = None
        self._embed: torch.nn.Module = model.get_input_embeddings()
        self._head: torch.nn.Module = model.get_output_embeddings()
        if kernels is not None:
            self._head = KernelLinear(self._head.weight, getattr(self._head, "bias", None), kernels)
        elif can_pack(device, dtype) and packing_pays([self._head]):
            self._head = PackedLinear(self._head)
        model.set_output_embeddings(self._head)  # or the plain copy would stay in memory

    @classmethod
    def load(cls, config: EngineConfig) -> TargetModel:
        """Load safetensors weights; raises ``ModelLoadError`` where the model cannot be served right."""
        started = time.monotonic()
        hf_config = read_config(config)
        adapter_type = adapter_for(hf_config.model_type)
        device, dtype = resolve_device(config.device), resolve_dtype(config, hf_config)
        attention.register()
        kernels = _kernels(config, device)
        if kernels is None:
            model = load_weights(config, adapter_type, dtype).to(device)
        else:
            model, dtype = load_narrow(config, adapter_type, dtype), torch.float32
        adapter = adapter_type(model)
        refuse_row_dependent(adapter.text_config)
        still_rope(adapter.text_model)
        model.set_attn_implementation(adapter.attn_implementation)
        if kernels is not None:
            log.info("CPU kernels in place of %s", install(adapter.text_model, kernels))
            model.float()  # what they did not replace
        elif can_pack(device, dtype):
            log.info("packed %d linear layers of the text model", pack_linears(adapter.text_model))
        shape, heads = KVShape.of(adapter.text_config, dtype), adapter.text_config.num_attention_heads
        chosen = attention_kernels(device, shape, heads, kernels, triton=config.triton_kernels)
        if device.type == "cuda" and chosen is not None:
            install_parts(adapter.text_model, chosen)
        target = cls(adapter, model, device, dtype, kernels, chosen)
        target.load_seconds = time.monotonic() - started
        return target

    @property
    def max_position(self) -> int:
        """The model's own context length, in tokens."""
        return int(self.adapter.text_config.max_position_embeddings)

    @property
    def kv_shape(self) -> KVShape:
        return KVShape.of(self.adapter.text_config, self.dtype)

    @property
    def vocab_size(self) -> int:
        return int(self.adapter.text_config.vocab_size)

    @property
    def position_axes(self) -> int:
        """How many rotary positions a token has."""
        positions = self.adapter.positions(Prompt(token_ids=[0]))
        return 1 if positions is None else len(positions)

    @property
    def has_graphs(self) -> bool:
        """Whether steps of few rows are CUDA graphs."""
        return self._graphs is not None

    @property
    def embedding(self) -> torch.nn.Module:
        """What ``embed`` calls."""
        return self._embed

    @torch.inference_mode()
    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        """What the adapter makes of each picture, in ``dtype``, and what is to be left of it."""
        with torch_threads(self.num_threads):
            encoded = self.adapter.encode_images([whole_of(image) for image in images])
        # Copies: what is cached of one picture must not keep a whole batch in memory.
        several = len(images) > 1
        return [
            compress(image, Encoded(own.values.to(self.dtype, copy=several), own.scores))
            for image, own in zip(images, encoded, strict=True)
        ]

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[N, hidden]`` of token ids ``[N]``."""
        embeddings: torch.Tensor = self._embed(token_ids)
        return embeddings

    @torch.inference_mode()
    def forward(
        self, context: AttentionContext, images: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    ) -> TargetOutput:
        """Run a row.

        ``images``: pairs (rows int64 ``[M]``, ascending over all of them, and what the adapter made of the
        picture there, ``[M, size]``) to put in place of placeholders.
        """
        embeddings = self.embed(context.batch.token_ids)
        more: dict[str, Any] = {}
        if images:
            rows, values = (torch.cat(parts) for parts in zip(*images, strict=True))
            embeddings.index_copy_(0, rows, values[:, : embeddings.shape[1]])
            more = self.adapter.image_inputs(rows, values, torch.Size([1, len(embeddings)]))
        found = None if more or self._graphs is None else self._graphs.forward(context, embeddings)
        if found is None:
            found = self._run(embeddings, context, more)
        return TargetOutput(found[0], embeddings, found[-1])

    def capture(self, cache: KVCache, max_num_seqs: int, max_pages: int, capture: Capture) -> None:
        """On CUDA: run few rows over ``cache`` as graphs from here on. ``max_pages``: of a sequence."""

        def make() -> RowGraphs:
            graphs = RowGraphs(
                lambda embeddings, context: self._run(embeddings, context, {}),
                cache,
                max_pages,
                self.position_axes,
                width=int(self.adapter.text_config.hidden_size),
                dtype=self.dtype,
                capture=capture,
            )
            graphs.prepare(max_num_seqs)
            return graphs

        self._graphs = captured("the model", make)

    def _run(
        self, embeddings: torch.Tensor, context: AttentionContext, more: dict[str, Any]
    ) -> list[torch.Tensor]:
        """Hidden states ``[N, hidden]`` after the final norm, and the features where layers are tapped."""
        hidden = self._hidden(embeddings, context, more)
        return [hidden, torch.cat([tap.taken[0] for tap in self._taps], dim=-1)] if self._taps else [hidden]

    def _hidden(
        self, embeddings: torch.Tensor, context: AttentionContext, more: dict[str, Any]
    ) -> torch.Tensor:
        if self._stack is not None and not more:
            hidden = self._stack.forward(embeddings, context)
            if hidden is not None:
                return hidden
        with torch_threads(self.num_threads):
            output = self._text_model(
                inputs_embeds=embeddings.unsqueeze(0),
                position_ids=context.batch.positions.unsqueeze(-2),
                use_cache=False,
                context=context,
                **more,
            )
        hidden = output.last_hidden_state[0]
        assert isinstance(hidden, torch.Tensor)
        return hidden

    def tap(self, layers: Sequence[int]) -> None:
        """Make ``features`` the hidden states that enter these layers, joined, as EAGLE-3 wants them; the
        number of layers means what leaves the last one. Raises ``ModelLoadError`` for any other number.
        """
        modules: Any = self.adapter.text_model
        stages = [*modules.layers, modules.norm]
        if not layers or not all(0 <= layer < len(stages) for layer in layers):
            raise ModelLoadError(f"cannot tap layers {list(layers)} of {len(stages) - 1}")
        self._stack = None  # it does not stop at layers
        self._taps = [Tap(stages[layer]) for layer in layers]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 ``[R, vocab]`` of hidden states ``[R, hidden]``."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()

    def head_of(self, vocabulary: torch.Tensor | None) -> torch.nn.Module:
        """The head, or a copy of its rows for the token ids ``vocabulary`` ``[V]``."""
        if vocabulary is None:
            return self._head
        if isinstance(self._head, KernelLinear):
            return self._head.rows(vocabulary)
        return _rows_of(self._head, vocabulary)


def _rows_of(head: torch.nn.Module, vocabulary: torch.Tensor) -> torch.nn.Linear:
    weight: Any = head.weight.to_dense() if isinstance(head, PackedLinear) else head.weight
    bias: Any = getattr(head, "bias", None)
    rows = torch.nn.Linear(weight.shape[1], len(vocabulary), bias=bias is not None, device="meta")
    rows.weight = torch.nn.Parameter(weight[vocabulary.to(weight.device)].clone(), requires_grad=False)
    if bias is not None:
        rows.bias = torch.nn.Parameter(bias[vocabulary.to(bias.device)].clone(), requires_grad=False)
    return rows


def _kernels(config: EngineConfig, device: torch.device) -> Kernels | None:
    if not config.cpu_kernels or device.type != "cpu":
        return None
    return Kernels.load(cache_folder() / "kernels")
