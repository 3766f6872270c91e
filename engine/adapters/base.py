"""The seam between the engine and a model family.

An adapter says where the parts of a Hugging Face model are and how pictures become embeddings. Attention,
paging, sampling and scheduling are the same for all and know no family.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from transformers import PretrainedConfig, PreTrainedModel

from processing.prompt import ImageInput


class Adapter(Protocol):
    """One family. Built around a loaded model."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of ``model_type`` in ``config.json``."""

    def __init__(self, model: PreTrainedModel) -> None: ...

    @staticmethod
    def load(path: str, **kwargs: object) -> PreTrainedModel:
        """Load with the auto class of the family; ``kwargs`` go to ``from_pretrained``."""

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

    def encode_images(self, images: list[ImageInput]) -> list[torch.Tensor]:
        """Embeddings of each picture, ``[num_tokens, hidden]``, in one batched pass where sizes allow."""
