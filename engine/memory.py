"""Measures the GPU memory that serving needs besides weights and KV, by running the largest step once.

The rest can be used for KV pages. Not used on a CPU, where KV gets a share of the free memory.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.config import EngineConfig
from engine.draft.features import MAX_WAITING_IN_ALL
from engine.draft.level_graphs import SEQUENCES
from engine.draft.pages import spare_pages
from engine.errors import ModelLoadError
from engine.kv_cache import KVCache
from engine.plan import StepLimits
from engine.target import TargetModel
from processing.chat import ChatMessage, ImagePart, TextPart
from processing.processor import Processor
from processing.prompt import ImageInput

log = logging.getLogger(__name__)

_SIDES = (1024, 1536, 2048, 3072, 4096)  # side lengths of the pictures to try, in pixels
_WAITING_STATES = 4  # per token: the three that EAGLE-3 reads, and its embedding
_LEVEL_BYTES = 16  # per row and token in the graphs of a draft's levels: logits and three steps in float32
_DRAFT_LAYERS = 2  # weights of a draft in target layers: its own layer and what joins its inputs


def reserved_bytes(config: EngineConfig, target: TargetModel, limits: StepLimits) -> int:
    """Return the CUDA memory to reserve: the largest step's peak, the encoder cache, and the future draft.

    Raises ``ModelLoadError`` if the largest step does not fit.
    """
    rows = min(limits.max_num_batched_tokens, target.max_position)
    cache = KVCache(
        target.kv_shape, -(-rows // config.page_size), config.page_size, target.device, target.attention
    )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(target.device)
    before = torch.cuda.memory_allocated(target.device)
    try:
        _, width = encode_most(config, target, limits.max_num_encoder_tokens)
        forward_most(config, target, cache, rows)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelLoadError(
            f"a step of {rows} rows and {limits.max_num_encoder_tokens} visual tokens does not fit into "
            "GPU memory; lower --max-num-batched-tokens"
        ) from error
    peak = torch.cuda.max_memory_allocated(target.device) - before
    del cache
    torch.cuda.empty_cache()
    kept = config.encoder_cache_tokens * width * target.dtype.itemsize
    draft = 0 if config.draft in ("none", "ngram") else draft_bytes(config, target)
    log.info("reserved GPU memory: %d bytes for a step, %d for pictures, %d for a draft", peak, kept, draft)
    return peak + kept + draft


@torch.inference_mode()
def encode_most(config: EngineConfig, target: TargetModel, max_tokens: int) -> torch.Size:
    """Encode as many copies of a blank picture as a step may, at least one.

    Returns the number of visual tokens and the columns kept of each, which exceed the text model's width if
    early layers get features of their own.
    """
    if target.adapter.image_token_id is None:
        return torch.Size((0, 0))
    image = _largest_image(config)
    encoded = target.encode_images([image] * max(1, max_tokens // image.num_tokens))
    return torch.Size((sum(len(one.values) for one in encoded), encoded[0].values.shape[1]))


def _largest_image(config: EngineConfig) -> ImageInput:
    """Return the square picture with the most tokens that can be encoded.

    If pictures keep their size, a large one takes more memory than small ones with as many tokens in total,
    and a step may encode a single large one.
    """
    processor = Processor.from_pretrained(config.model, config.revision, config.trust_remote_code)
    largest: ImageInput | None = None
    for side in _SIDES:
        chat = [ChatMessage("user", [ImagePart(Image.new("RGB", (side, side))), TextPart("")])]
        image = processor.apply(chat).images[0]
        if largest is not None and not largest.num_tokens < image.num_tokens <= config.encoder_cache_tokens:
            break
        largest = image
    assert largest is not None
    return largest


@torch.inference_mode()
def forward_most(config: EngineConfig, target: TargetModel, cache: KVCache, rows: int) -> torch.Size:
    """Run one sequence of ``rows`` tokens and compute logits for the most rows that a step can sample."""
    order = np.arange(rows)
    pages = range(cache.num_slots // config.page_size)
    part = Part(np.zeros(rows, np.int64), order, pages, first=0)
    hidden = target.forward(prepare(build_batch([part], config.page_size, target.device), cache)).hidden
    drawn = min(rows, config.max_num_seqs * (1 + config.speculative.num_draft_tokens))
    return target.logits(hidden[:drawn]).log_softmax(dim=-1).shape


def draft_bytes(config: EngineConfig, target: TargetModel) -> int:
    """Return an upper bound for the memory of a draft of the target's type.

    It covers the weights, a separate head as large as the target's, KV for the trees of all sequences,
    waiting features, and the graphs of its levels. The draft's KV for every page is part of the page size
    (:mod:`engine.sizing`); the feature kept with each page, a hundredth of that, is not counted.
    """
    layer: Any = target.adapter.text_model.layers[0]  # type: ignore[index]
    weights = sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters())
    state = int(target.adapter.text_config.hidden_size) * target.dtype.itemsize
    pages = spare_pages(config.max_num_seqs, config.page_size)
    shape = target.kv_shape
    kv = pages * config.page_size * shape.bytes_per_token // shape.num_layers
    rows = min(config.max_num_seqs, SEQUENCES[-1]) * config.speculative.topk if config.cuda_graphs else 0
    levels = rows * target.vocab_size * _LEVEL_BYTES
    waiting = MAX_WAITING_IN_ALL * _WAITING_STATES * state
    return _DRAFT_LAYERS * weights + target.vocab_size * state + waiting + kv + levels
