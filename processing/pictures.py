"""Decoded pictures to pixel tensors: colours, shapes, one picture's share of a batch, and content hashes.

Works on the output of any Hugging Face image processor. Does not know where pictures come from (a server
vets them first) or where they are in a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from processing.errors import PromptError, UnsupportedModelError

HASH_SIZE = 32
# Resizing the short edge of a 1 x 20000 strip to 336 pixels would take gigabytes.
MAX_ASPECT_RATIO = 200
# What image processors return besides tensors, about one message or about the tiles of each picture.
TILE_COUNTS = frozenset({"num_patches", "num_crops", "rows", "cols", "batch_num_images"})
# Image processors whose ``do_pad`` only makes the pictures of a message equally large, so that they can be
# stacked. (LLaVA's makes a picture a square.)
_PAD_TO_STACK = ("LlavaNextImage", "LlavaOnevisionImage", "PixtralImage", "Idefics3Image", "SmolVLMImage")


def check_shape(size: tuple[int, int]) -> None:
    width, height = size
    if min(size) < 1:
        raise PromptError(f"an image of {width} x {height} pixels is empty")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise PromptError(
            f"an image of {width} x {height} pixels is too narrow; the longer side may be at most "
            f"{MAX_ASPECT_RATIO} times the shorter"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, with transparency on white: what is invisible must not become black."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits to 8, which turns all but the darkest greys white.
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def options_alone(image_processor: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``options`` of an image processor, changed so that a picture's tensors do not depend on the
    sizes of other pictures.
    """
    pads = type(image_processor).__name__.startswith(_PAD_TO_STACK)
    return {**options, "do_pad": False} if pads else dict(options)


def split_features(features: Mapping[str, Any], count: int) -> list[dict[str, np.ndarray]]:
    """Return each picture's own tensors, with the leading dimension kept and floats as float32.

    Most families stack one entry per picture. Qwen's concatenate the patches of all pictures, and
    ``image_grid_thw`` says how many rows belong to each; others cut pictures into tiles and stack those.
    """
    if "image_grid_thw" in features:
        grids = np.asarray(features["image_grid_thw"])
        rows = np.cumsum(grids.prod(axis=1))[:-1]
        patches = np.split(np.asarray(features["pixel_values"]), rows)
        return [
            {"pixel_values": _plain(own), "image_grid_thw": _plain(grid[None])}
            for own, grid in zip(patches, grids, strict=True)
        ]
    tensors = {name: value for name, value in features.items() if name not in TILE_COUNTS}
    if (counts := _num_tiles(features)) is not None:
        # Idefics3 nests by message, of which there is one.
        tiles = tensors["pixel_values"][0] if "rows" in features else tensors["pixel_values"]
        ends = np.cumsum(counts).tolist()
        if len(tiles) == ends[-1]:
            tensors["pixel_values"] = [tiles[end - n : end] for n, end in zip(counts, ends, strict=True)]
        return [
            {"pixel_values": _plain(np.stack(own))} for own in _of_pictures(tensors, count)["pixel_values"]
        ]
    stacked = _of_pictures(tensors, count)
    return [
        {name: _plain(np.asarray(value[index])[None]) for name, value in stacked.items()}
        for index in range(count)
    ]


def _of_pictures(tensors: dict[str, Any], count: int) -> dict[str, Any]:
    if wrong := {name: len(value) for name, value in tensors.items() if len(value) != count}:
        raise UnsupportedModelError(f"the image processor returned {wrong} entries for {count} images")
    return tensors


def _num_tiles(features: Mapping[str, Any]) -> list[int] | None:
    """Return the number of tiles of each picture; ``None`` if nothing indicates that they are stacked."""
    if "num_patches" in features:  # InternVL
        return [int(n) for n in features["num_patches"]]
    if "num_crops" in features:  # Gemma 3: the picture, and what was cut out of it
        return [1 + int(n) for n in features["num_crops"]]
    if "rows" in features:  # Idefics3 and SmolVLM: a grid, then the whole picture
        (rows,), (columns,) = features["rows"], features["cols"]
        return [1 + int(r) * int(c) for r, c in zip(rows, columns, strict=True)]
    return None


def _plain(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype.kind == "f" else None)


def picture_hash(tensors: Mapping[str, np.ndarray], fingerprint: bytes) -> bytes:
    """Return a content hash; equal hashes mean equal embeddings. Every field is hashed with its length, so
    that tensors of another shape, dtype or name with the same bytes in memory differ."""
    digest = blake2b(digest_size=HASH_SIZE, person=b"specvlm-picture")
    _update(digest, fingerprint)
    for name in sorted(tensors):
        array = tensors[name]
        _update(digest, name.encode())
        _update(digest, f"{array.dtype.str}{array.shape}".encode())
        _update(digest, np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.digest()


def _update(digest: blake2b, field: bytes | memoryview) -> None:
    digest.update(len(field).to_bytes(8))
    digest.update(field)


def split_runs(positions: Sequence[int], counts: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Return runs ``(offset, length)`` of adjacent positions, ``counts[i]`` positions for picture i.

    >>> split_runs([2, 3, 5, 8, 9], [3, 2])
    [[(2, 2), (5, 1)], [(8, 2)]]
    """
    rest = iter(positions)
    pictures = []
    for count in counts:
        runs: list[tuple[int, int]] = []
        for _ in range(count):
            position = next(rest)
            if runs and sum(runs[-1]) == position:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((position, 1))
        pictures.append(runs)
    return pictures
