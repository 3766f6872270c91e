"""Fewer visual tokens for the model itself, as requested by clients. This changes answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.config import VisualCompression
from server.schemas.base import ClientModel


class VisualCompressionFields(ClientModel):
    method: Literal["none", "pool", "prune"] = Field(
        description="'pool': averages of neighbours; 'prune': the tokens that differ most from each other."
    )
    ratio: float = Field(4.0, ge=1, le=1000, description="Visual tokens per token kept, approximately.")


class PictureFields(ClientModel):
    """Fields of every endpoint that accepts pictures."""

    visual_compression: VisualCompressionFields | None = Field(
        None, description="Fewer visual tokens for the model: lossy, and only where the server allows it."
    )

    @property
    def lossy(self) -> VisualCompression | None:
        """The requested compression; ``None`` for the server's setting."""
        asked = self.visual_compression
        return None if asked is None else VisualCompression(method=asked.method, ratio=asked.ratio)
