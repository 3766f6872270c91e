"""The target model: an unmodified Hugging Face model with paged attention in its text model.

Loads the model, embeds tokens, encodes pictures, runs packed rows and computes logits. Knows nothing of
sequences, scheduling or sampling.
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
from engine.kernels.onednn import OnednnLinear, can_pack, pack_linears, packing_pays
from engine.kernels.spans import AttentionKernels
from engine.kernels.stack import KernelStack
from engine.kv_cache import KVCache, KVShape
from engine.visual_compression import compress, whole_of
from processing.prompt import ImageInput, Prompt

log = logging.getLogger(__name__)


class TargetOutput(NamedTuple):
    """The output for a row of N tokens.

    ``hidden`` ``[N, hidden]``: hidden states after the final norm. ``embeddings`` ``[N, hidden]``: the input
    embeddings. ``features`` ``[N, size]``: features for the draft, the same as ``hidden`` unless layers are
    tapped.
    """

    hidden: torch.Tensor
    embeddings: torch.Tensor
    features: torch.Tensor


class Tap:
    """Forward hook that remembers the last input of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.taken: torch.Tensor
        module.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self.taken = args[0] if args else kwargs["hidden_states"]


class TargetModel:
    """Weights and adapter of the target, with its three passes: encode pictures, forward, logits."""

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
            self._head = OnednnLinear(self._head)
        model.set_output_embeddings(self._head)  # otherwise the plain copy would stay in memory

    @classmethod
    def load(cls, config: EngineConfig) -> TargetModel:
        """Load safetensors weights. Raises ``ModelLoadError`` if the model cannot be served correctly."""
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
            log.info("CPU kernels replace %s", install(adapter.text_model, kernels))
            model.float()  # the modules that they did not replace
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
        """The model's maximum context length, in tokens."""
        return int(self.adapter.text_config.max_position_embeddings)

    @property
    def kv_shape(self) -> KVShape:
        return KVShape.of(self.adapter.text_config, self.dtype)

    @property
    def vocab_size(self) -> int:
        return int(self.adapter.text_config.vocab_size)

    @property
    def position_axes(self) -> int:
        """The number of rotary positions per token."""
        positions = self.adapter.positions(Prompt(token_ids=[0]))
        return 1 if positions is None else len(positions)

    @property
    def has_graphs(self) -> bool:
        """Whether steps of few rows run as CUDA graphs."""
        return self._graphs is not None

    @property
    def embedding(self) -> torch.nn.Module:
        """The input embedding module."""
        return self._embed

    @torch.inference_mode()
    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        """Encode pictures with the adapter, in ``dtype``, and apply lossy compression where requested."""
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
        """Return the embeddings ``[N, hidden]`` of token ids ``[N]``."""
        embeddings: torch.Tensor = self._embed(token_ids)
        return embeddings

    @torch.inference_mode()
    def forward(
        self, context: AttentionContext, images: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    ) -> TargetOutput:
        """Run the text model on a packed row.

        ``images``: pairs of rows, int64 ``[M]`` and ascending over all pairs, and the adapter's encoding
        ``[M, size]`` of the picture there, which replaces the placeholders.
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
        """Capture CUDA graphs over ``cache`` that run small steps from now on.

        ``max_pages``: the most pages of a sequence.
        """

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
        """Return hidden states ``[N, hidden]`` after the final norm, and features if layers are tapped."""
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
        """Make ``features`` the concatenated hidden states that enter these layers, as EAGLE-3 expects.

        An index equal to the number of layers stands for the output of the last layer. Raises
        ``ModelLoadError`` for an index out of range.
        """
        modules: Any = self.adapter.text_model
        stages = [*modules.layers, modules.norm]
        if not layers or not all(0 <= layer < len(stages) for layer in layers):
            raise ModelLoadError(f"cannot tap layers {list(layers)} of {len(stages) - 1}")
        self._stack = None  # the kernel stack cannot expose the hidden states between layers
        self._taps = [Tap(stages[layer]) for layer in layers]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 ``[R, vocab]``, of hidden states ``[R, hidden]``."""
        logits: torch.Tensor = self._head(hidden)
        return logits.float()

    def head_of(self, vocabulary: torch.Tensor | None) -> torch.nn.Module:
        """Return the head, or a copy of its rows for the token ids ``vocabulary`` ``[V]``."""
        if vocabulary is None:
            return self._head
        if isinstance(self._head, KernelLinear):
            return self._head.rows(vocabulary)
        return _rows_of(self._head, vocabulary)


def _rows_of(head: torch.nn.Module, vocabulary: torch.Tensor) -> torch.nn.Linear:
    weight: Any = head.weight.to_dense() if isinstance(head, OnednnLinear) else head.weight
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
