"""Lossy compression of visual tokens for the target itself, used only on request.

The prompt is rewritten before anything else processes it: each picture gets as many placeholders as tokens
will be left of it, which follows from its shape. Its encoding is compressed once, before it is cached. From
then on it is a picture like any other: decoding is that of the shorter prompt, with or without a draft.
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
    """A picture whose visual tokens are to be compressed.

    ``whole``: the picture that the encoder gets. ``grids``: the grids of its visual tokens.
    """

    whole: ImageInput
    grids: tuple[Grid, ...]
    how: VisualCompression

    @property
    def num_encoded(self) -> int:
        return self.whole.num_tokens


def compressed(prompt: Prompt, how: VisualCompression, adapter: Adapter) -> Prompt:
    """Return ``prompt``, which must have been validated, with fewer placeholders.

    Raises ``ValueError`` for a ratio below 1, and if text splits a grid of visual tokens.
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
    """Return the grids of the visual tokens in the prompt. Tokens chosen by diversity form no grid."""
    if not isinstance(image, CompressedImage):
        return adapter.grids(image)
    kept = kept_grids(Picture(image.grids, image.hash), image.how.ratio)
    return tuple(kept if image.how.method == "pool" else [(1, rows * columns) for rows, columns in kept])


def compress(image: ImageInput, encoded: Encoded) -> Encoded:
    """Compress the encoding of a whole picture. A token has the score of the token whose place it takes."""
    if not isinstance(image, CompressedImage):
        return encoded
    (found,) = _compressor(image.how)(encoded.values, [Picture(image.grids, image.hash)])
    scores = None if encoded.scores is None else encoded.scores[found.sources]
    return Encoded(found.values, scores)


def _compressor(how: VisualCompression) -> Compressor:
    """Return the compressor. Raises ``ValueError`` for a ratio below 1."""
    return Pool(how.ratio) if how.method == "pool" else DiversePrune(how.ratio)


def _kept(image: ImageInput, grids: tuple[Grid, ...], how: VisualCompression) -> Iterator[int]:
    """Yield the placeholders left of each run. Either each run is a grid, or all grids form one run."""
    counts = [rows * columns for rows, columns in kept_grids(Picture(grids, image.hash), how.ratio)]
    lengths = [length for _, length in image.spans]
    if lengths == [rows * columns for rows, columns in grids]:
        yield from counts
    elif len(lengths) == 1:
        yield sum(counts)
    else:
        raise ValueError("visual_compression is not supported if text splits a grid of visual tokens")
