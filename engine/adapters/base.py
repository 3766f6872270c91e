"""The seam between the engine and a model family.

An adapter says where the parts of a Hugging Face model are and how pictures become embeddings. Attention,
paging, sampling and scheduling are the same for all and know no family.
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
    """A picture of N visual tokens. ``values`` ``[N, size]``: their embeddings, and further columns where
    ``image_inputs`` wants them. ``scores`` float32 ``[N]``: how much the vision tower attended to each, where
    the adapter ``knows_attention``.
    """

    values: torch.Tensor
    scores: torch.Tensor | None = None


class Adapter(Protocol):
    """One family. Built around a loaded model. What has a body here is right for plain families."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of ``model_type`` in ``config.json``."""

    @property
    def longest_block(self) -> int:
        """Tokens of a picture that see each other in both directions, at most; 0: none does."""
        return 0

    @property
    def can_spare_tokens(self) -> bool:
        """Whether a picture may have fewer visual tokens than its encoder makes of it: none of them stands
        for a place of its own, by position or by features that other layers add.
        """
        return False

    @property
    def knows_attention(self) -> bool:
        """Whether encoded pictures have ``scores``."""
        return False

    def __init__(self, model: PreTrainedModel) -> None: ...

    @staticmethod
    def load(path: str, **kwargs: object) -> PreTrainedModel:
        """What ``from_pretrained`` of the family's auto class returns; ``kwargs`` go to it."""

    @property
    def text_config(self) -> PretrainedConfig: ...

    @property
    def text_model(self) -> torch.nn.Module:
        """The decoder without its head: embeddings in, hidden states after the final norm out."""

    @property
    def attn_implementation(self) -> str | dict[str, str]:
        """Argument of ``set_attn_implementation`` that reaches the text model only."""

    @property
    def image_token_id(self) -> int | None:
        """Placeholder token; ``None`` if the family takes no pictures."""

    def check_image(self, image: ImageInput) -> None:
        """Raise ``ValueError`` if the tensors cannot be what the encoder expects."""

    def encode_images(self, images: list[ImageInput]) -> list[Encoded]:
        """Each picture, in one batched pass where sizes allow."""

    def image_inputs(self, rows: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> dict[str, Any]:  # noqa: ARG002
        """What the text model takes besides embeddings and positions where there are pictures: keyword
        arguments. ``values`` ``[M, size]`` of ``encode_images`` belong to ``rows``, int64 ``[M]``, ascending,
        of ``shape`` ``[B, N]`` tokens counted through.
        """
        return {}

    def grids(self, image: ImageInput) -> tuple[Grid, ...]:
        """(Rows, columns) of each grid of a picture's visual tokens, row by row, one grid after the other:
        what compresses pictures for the draft works on. One row of all tokens where nothing is known.
        """
        return ((1, image.num_tokens),)

    def positions(self, prompt: Prompt) -> Positions | None:  # noqa: ARG002
        """Rotary positions of the prompt's tokens, ``[3, num_tokens]``, for a family with three axes, text
        without pictures too. ``None``: they are the tokens' indices.
        """
        return None
