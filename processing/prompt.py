"""The data structures of a processed prompt, in process and on the wire alike."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt


class ImageInput(msgspec.Struct, frozen=True, kw_only=True):
    """One picture, ready for a vision tower.

    ``hash`` covers the *processed* pixels, their grid and the processor's options (tiling can depend on the
    whole message), so equal hashes mean equal embeddings. ``spans`` are the runs ``(offset, length)`` of
    placeholder tokens in the prompt which the embeddings fill in order. ``tensors`` are the keyword
    arguments of the family's image encoder, for this picture alone.
    """

    hash: bytes
    spans: list[tuple[int, int]]
    tensors: dict[str, np.ndarray]

    @property
    def num_tokens(self) -> int:
        return sum(length for _, length in self.spans)

    @property
    def num_encoded(self) -> int:
        """Number of visual tokens that the encoder produces."""
        return self.num_tokens

    @property
    def places(self) -> npt.NDArray[np.int64]:
        """Indices of all placeholders in the prompt, ``[num_tokens]``, ascending."""
        return np.concatenate([np.arange(first, first + n, dtype=np.int64) for first, n in self.spans])

    @property
    def start(self) -> int:
        """Index of the first placeholder in the prompt."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """Index after that of the last placeholder in the prompt."""
        return self.spans[-1][0] + self.spans[-1][1]


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids with expanded picture placeholders, and the pictures in order of appearance."""

    token_ids: list[int]
    images: list[ImageInput] = []
