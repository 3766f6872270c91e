"""Fewer visual tokens for the target itself: lossy, and only where somebody asks for it.

The prompt is rewritten before anything else looks at it: a picture has as many placeholders as tokens will be
left of it, which its shape says, and what it is encoded to is compressed once, before it is kept. From there
on it is a picture like any other: decoding is that of the shorter prompt, with a draft or without.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from compressors.base import Compressor, Grid, Picture, kept_grids
from compressors.diverse import DiversePrune
from compressors.pool import Pool
from engine.adapters.base import Adapter, Encoded
from engine.config import VisualCompression
from processing.prompt import ImageInput, Prompt


class CompressedImage(ImageInput, frozen=True, kw_only=True):
    """``whole``: what the encoder is given. ``grids``: in which its visual tokens lie."""

    whole: ImageInput
    grids: tuple[Grid, ...]
    how: VisualCompression

    @property
    def num_encoded(self) -> int:
        return self.whole.num_tokens


def compressed(prompt: Prompt, how: VisualCompression, adapter: Adapter) -> Prompt:
    """``prompt``, which was checked, with fewer placeholders. ``ValueError`` for a ratio below 1, and where
    text stands inside a grid of visual tokens.
    """
    _compressor(how)
    token_ids: list[int] = []
    images: list[ImageInput] = []
    done = 0
    for image in prompt.images:
        grids = adapter.grids(image)
        spans = []
        for (start, length), kept in zip(image.spans, _kept(image, grids, how), strict=True):
            token_ids += prompt.token_ids[done:start]
            spans.append((len(token_ids), kept))
            token_ids += prompt.token_ids[start : start + kept]
            done = start + length
        images.append(
            CompressedImage(
                hash=blake2b(image.hash + repr((how.method, how.ratio)).encode(), digest_size=32).digest(),
                spans=spans,
                tensors={},
                whole=image,
                grids=grids,
                how=how,
            )
        )
    return Prompt(token_ids=token_ids + prompt.token_ids[done:], images=images)


def whole_of(image: ImageInput) -> ImageInput:
    return image.whole if isinstance(image, CompressedImage) else image


def grids_of(image: ImageInput, adapter: Adapter) -> tuple[Grid, ...]:
    """In which the visual tokens of the prompt lie. What diversity chose lies in no grid."""
    if not isinstance(image, CompressedImage):
        return adapter.grids(image)
    kept = kept_grids(Picture(image.grids, image.hash), image.how.ratio)
    return tuple(kept if image.how.method == "pool" else [(1, rows * columns) for rows, columns in kept])


def compress(image: ImageInput, encoded: Encoded) -> Encoded:
    """What is left of a picture, which was encoded whole. A token has the score of the one in its place."""
    if not isinstance(image, CompressedImage):
        return encoded
    (found,) = _compressor(image.how)(encoded.values, [Picture(image.grids, image.hash)])
    scores = None if encoded.scores is None else encoded.scores[found.sources]
    return Encoded(found.values, scores)


def _compressor(how: VisualCompression) -> Compressor:
    """``ValueError`` for a ratio below 1."""
    return Pool(how.ratio) if how.method == "pool" else DiversePrune(how.ratio)


def _kept(image: ImageInput, grids: tuple[Grid, ...], how: VisualCompression) -> Iterator[int]:
    """Placeholders that are left of each run. A run of its own is a grid, or all grids are one run."""
    counts = [rows * columns for rows, columns in kept_grids(Picture(grids, image.hash), how.ratio)]
    lengths = [length for _, length in image.spans]
    if lengths == [rows * columns for rows, columns in grids]:
        yield from counts
    elif len(lengths) == 1:
        yield sum(counts)
    else:
        raise ValueError("visual_compression is not supported where text cuts through a grid of tokens")
