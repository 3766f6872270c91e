"""The interface between the engine and a model family.

An adapter locates the parts of a Hugging Face model and turns pictures into embeddings. Attention, paging,
sampling and scheduling are the same for all families.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel

from compressors.base import Grid
from engine.mrope import Positions
from processing.prompt import ImageInput, Prompt


@dataclass(slots=True, frozen=True)
class Encoded:
    """An encoded picture of N visual tokens.

    ``values`` ``[N, size]``: their embeddings, and further columns if ``image_inputs`` needs them. ``scores``
    float32 ``[N]``: how much the vision tower attended to each token, if the adapter ``knows_attention``.
    """

    values: torch.Tensor
    scores: torch.Tensor | None = None


class Adapter(Protocol):
    """The adapter of one model family, built around a loaded model. Methods with a body are defaults."""

    model_types: ClassVar[tuple[str, ...]]
    """The supported values of ``model_type`` in ``config.json``."""

    @property
    def longest_block(self) -> int:
        """The most tokens of a picture that attend to each other in both directions; 0 if none do."""
        return 0

    @property
    def can_spare_tokens(self) -> bool:
        """Whether a picture may have fewer visual tokens than its encoder produces.

        That is so if no token is tied to a place in the picture, by its position or by features that other
        layers add.
        """
        return False

    @property
    def knows_attention(self) -> bool:
        """Whether encoded pictures have ``scores``."""
        return False

    def __init__(self, model: PreTrainedModel) -> None: ...

    @staticmethod
    def load(path: str, **kwargs: object) -> PreTrainedModel:
        """Load the model with ``from_pretrained`` of the family's auto class, which gets ``kwargs``."""

    @property
    def text_config(self) -> PretrainedConfig: ...

    @property
    def text_model(self) -> torch.nn.Module:
        """The decoder without its head: embeddings in, hidden states after the final norm out."""

    @property
    def attn_implementation(self) -> str | dict[str, str]:
        """The argument of ``set_attn_implementation`` that affects only the text model."""

    @property
    def image_token_id(self) -> int | None:
        """The placeholder token; ``None`` if the family takes no pictures."""

    def check_image(self, image: ImageInput) -> None:
        """Raise ``ValueError`` if the tensors cannot be what the encoder expects."""

    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        """Encode pictures, in one batched pass if their sizes allow."""

    def image_inputs(self, rows: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> dict[str, Any]:  # noqa: ARG002
        """Return additional keyword arguments of the text model for pictures.

        ``values`` ``[M, size]`` from ``encode_images`` belong to ``rows``, int64 ``[M]``, ascending flat
        indices into ``shape`` ``[B, N]`` tokens.
        """
        return {}

    def grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """Return (rows, columns) of each grid of a picture's visual tokens, for the draft's compressors.

        Tokens are ordered row by row, one grid after the other. By default all tokens form one row.
        """
        return ((1, image.num_tokens),)

    def positions(self, prompt: Prompt) -> Positions | None:  # noqa: ARG002
        """Return the rotary positions of a prompt, ``[3, num_tokens]``, for families with three axes.

        They are also returned for prompts without pictures. ``None`` if positions are the token indices.
        """
        return None
