"""Executes the scheduler's plan: encodes pictures, runs the row, walks the trees, moves accepted KV.

Works on tensors and spans; it neither plans nor commits, and it knows nothing of requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from engine.adapters.base import Encoded
from engine.attention import prepare
from engine.batch import Part, build_batch
from engine.encoder_cache import EncoderCache
from engine.grammar.tree import fill_ahead
from engine.kv_cache import KVCache
from engine.messages import RejectCode, TokenLogprobs
from engine.plan import Span
from engine.scoring import score_prompts
from engine.target import TargetModel
from engine.transfer import to_device
from engine.verify import Walk, walk
from processing.prompt import ImageInput

Failure = tuple[RejectCode, str]
NOT_ENCODED: Failure = ("internal_error", "a picture could not be encoded")
TOO_LARGE: Failure = ("out_of_memory", "there is not enough memory to encode a picture of this size")

log = logging.getLogger(__name__)


@dataclass(slots=True, frozen=True)
class Outcome:
    """The result of running a row of spans.

    ``walks``: one per span, ``None`` for a prompt that is not complete yet. ``prompt_logprobs``: what each
    span adds to those of its sequence. ``features`` ``[N, size]`` and ``embeddings`` ``[N, hidden]``: those
    of the whole row. ``image_scores``: attention scores of its pictures, by key, if the encoder gave any.
    ``seconds``: the time of the whole run.
    """

    walks: list[Walk | None]
    prompt_logprobs: list[list[TokenLogprobs]]
    features: torch.Tensor
    embeddings: torch.Tensor
    image_scores: dict[bytes, torch.Tensor]
    seconds: float

    @property
    def paths(self) -> list[list[int]]:
        return [[] if walked is None else walked.path for walked in self.walks]


class Runner:
    """Runs steps on the target model with its KV cache and its picture embeddings."""

    def __init__(
        self, target: TargetModel, cache: KVCache, embeddings: EncoderCache[Encoded], page_size: int
    ) -> None:
        self._target = target
        self._cache = cache
        self._embeddings = embeddings
        self._page_size = page_size

    def encode(self, images: Mapping[bytes, ImageInput]) -> dict[bytes, Failure]:
        """Encode pictures in one pass; if that fails, one by one, so that only the faulty ones are lost.

        Returns the keys of the pictures that could not be encoded, each with the reason.
        """
        if not images:
            return {}
        encoded = self._encode_all(list(images.values()))
        finite = iter(_all_finite([one.values for one in encoded if isinstance(one, Encoded)]))
        failed = {}
        for key, one in zip(images, encoded, strict=True):
            if not isinstance(one, Encoded):
                failed[key] = one
            elif next(finite):
                self._embeddings.put(key, one)
            else:
                failed[key] = NOT_ENCODED
        return failed

    def run_parts(self, spans: list[Span]) -> Iterator[tuple[list[Span], Outcome | None]]:
        """Call ``run``, halving the spans as long as memory does not suffice; yield each part's outcome.

        The outcome is ``None`` for a single span that does not fit. A run only writes KV that is not shared
        yet, so it can be repeated.
        """
        outcome = None
        try:
            outcome = self.run(spans)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.error("not enough memory for a step of %d sequences: %s", len(spans), error)
        half = len(spans) // 2
        if outcome is not None or not half:
            yield spans, outcome
        else:  # outside the ``except`` block: the error keeps tensors alive
            yield from self.run_parts(spans[:half])
            yield from self.run_parts(spans[half:])

    def run(self, spans: Seq[Span]) -> Outcome:
        """Run the forward pass, sample along every tree, and compact the KV of accepted nodes."""
        started = time.monotonic()
        batch = build_batch([part_of(span) for span in spans], self._page_size, self._target.device)
        placements, image_scores = self._placements(spans)
        hidden, embeddings, features = self._target.forward(prepare(batch, self._cache), placements)
        drawing = [i for i, span in enumerate(spans) if span.samples]
        walks: list[Walk | None] = [None] * len(spans)
        if drawing:
            ends = batch.span_starts[1:]
            rows = np.concatenate(
                [np.arange(ends[i] - spans[i].num_rows + spans[i].length - 1, ends[i]) for i in drawing]
            )
            (drawn,) = to_device([rows], hidden.device)
            logits = self._target.logits(hidden[drawn])
            # The GPU is still busy: meanwhile the host computes grammar masks. On a CPU there is nothing to
            # overlap, so the walk computes only the masks that it needs.
            if logits.is_cuda:
                event = torch.cuda.Event()
                event.record()
                fill_ahead(spans, event.query)
            for i, walked in zip(drawing, walk(logits, [spans[i] for i in drawing]), strict=True):
                walks[i] = walked
        prompt_logprobs = score_prompts(spans, batch.span_starts[:-1], hidden, self._target.logits)
        self._compact(spans, walks)
        seconds = time.monotonic() - started
        return Outcome(walks, prompt_logprobs, features, embeddings, image_scores, seconds)

    def _compact(self, spans: Seq[Span], walks: Iterable[Walk | None]) -> None:
        """Move the KV of accepted nodes into logical order: node ``path[i]`` becomes token ``i + 1`` after
        the root.

        Takes one gather and one scatter for all layers and sequences; nothing if all paths are dense.
        """
        sources: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for span, walked in zip(spans, walks, strict=True):
            if walked is None or not walked.path:
                continue
            table = np.asarray(span.sequence.table.pages, dtype=np.int64)
            nodes, index = np.asarray(walked.path), np.arange(len(walked.path))
            moved = nodes != index
            for found, logical in ((sources, nodes[moved]), (targets, index[moved])):
                at = span.end + logical
                found.append(table[at // self._page_size] * self._page_size + at % self._page_size)
        if sources and any(map(len, sources)):
            joined = [np.concatenate(sources), np.concatenate(targets)]
            self._cache.move(*to_device(joined, self._target.device))

    def _encode_all(self, images: list[ImageInput]) -> Seq[Encoded | Failure]:
        try:
            return self._target.encode_images(images)
        except Exception as error:  # whatever the vision tower raises, other pictures must still be encoded
            num_tokens = sum(image.num_tokens for image in images)
            log.exception("encoding pictures failed: %d of %d tokens together", len(images), num_tokens)
            failure = TOO_LARGE if is_out_of_memory(error) else NOT_ENCODED
        if len(images) == 1:
            return [failure]
        # outside the ``except`` block: the error keeps tensors alive
        return [one for image in images for one in self._encode_all([image])]

    def _placements(
        self, spans: Seq[Span]
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], dict[bytes, torch.Tensor]]:
        """Return the placeholder rows of this step with their embeddings, and the pictures' scores by key."""
        placements, scores, first_row = [], {}, 0
        for span in spans:
            for key, image in span.sequence.images_in(span.start, span.end):
                positions = image.places
                chosen = np.flatnonzero((positions >= span.start) & (positions < span.end))
                if not len(chosen):
                    continue
                encoded = self._embeddings.get(key)
                rows = torch.from_numpy(positions[chosen] - span.start + first_row).to(encoded.values.device)
                placements.append((rows, encoded.values[int(chosen[0]) : int(chosen[-1]) + 1]))
                if encoded.scores is not None:
                    scores[key] = encoded.scores
            first_row += span.num_rows
        return placements, scores


def part_of(span: Span) -> Part:
    """Return the part of the target's row for a span: its tokens, then its tree."""
    token_ids = np.asarray(span.sequence.token_ids[span.start : span.end], dtype=np.int64)
    positions = span.sequence.positions(span.start, span.end)
    if span.tree is None:
        return Part(
            token_ids,
            positions,
            span.sequence.table.pages,
            span.start,
            visible_ends=span.sequence.visible_ends(span.start, span.end),
        )
    return Part(
        np.concatenate([token_ids, span.tree.token_ids]),
        np.concatenate([positions, positions[..., -1:] + span.tree.depths], axis=-1),
        span.sequence.table.pages,
        span.start,
        tree_start=span.start,
        masks=span.tree.masks,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether ``error`` means that memory ran out.

    Torch has an exception type for GPU memory, but only a message text for host memory.
    """
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _all_finite(tensors: Seq[torch.Tensor]) -> list[bool]:
    """Return which tensors contain only finite numbers, with one device-to-host copy for all of them."""
    if not tensors:
        return []
    verdicts: list[bool] = torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).tolist()
    return verdicts
