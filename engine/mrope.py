"""Rotary positions with three axes (M-RoPE: time, height, width) for prompts with pictures. No torch.

A text token has the same position on all axes. The tokens of a picture start at the position that a text
token would have had there and count rows and columns of the picture's grid; the text after it continues after
the longer side, so that a sequence's largest position is less than its length (arXiv 2409.12191, section
2.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from processing.prompt import ImageInput

Positions = npt.NDArray[np.int64]
"""``[N]``, or ``[3, N]`` for a family with three axes."""


def grid_positions(num_tokens: int, images: Sequence[ImageInput], merge_size: int) -> Positions:
    """Return the positions, int64 ``[3, num_tokens]``.

    ``images``: in order, each with one span. ``image_grid_thw`` ``[1, 3]`` holds the number of patches per
    axis, of which ``merge_size`` by ``merge_size`` become one token. Example with one text token, a picture
    of 2 rows and 3 columns, and two text tokens:

        time     0   1 1 1 1 1 1   4 5
        height   0   1 1 1 2 2 2   4 5
        width    0   1 2 3 1 2 3   4 5
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    done = position = 0
    for image in images:
        ((start, length),) = image.spans
        positions[:, done:start] = np.arange(position, position + start - done)
        position += start - done
        _, rows, columns = (image.tensors["image_grid_thw"][0] // (1, merge_size, merge_size)).tolist()
        own = positions[:, start : start + length]
        own[:] = position
        own[1:] += np.indices((rows, columns)).reshape(2, -1)
        position += max(rows, columns)
        done = start + length
    positions[:, done:] = np.arange(position, position + num_tokens - done)
    return positions
