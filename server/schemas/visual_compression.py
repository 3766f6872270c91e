"""Fewer visual tokens for the model itself, as clients ask for it. This changes answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.config import VisualCompression
from server.schemas.base import ClientModel


class VisualCompressionFields(ClientModel):
    method: Literal["none", "pool", "prune"] = Field(
        description="'pool': means of neighbours; 'prune': the tokens that differ most from each other."
    )
    ratio: float = Field(4.0, ge=1, le=1000, description="Visual tokens for each that is kept, nearly.")


class PictureFields(ClientModel):
    """Of every endpoint that takes pictures."""

    visual_compression: VisualCompressionFields | None = Field(
        None, description="Fewer visual tokens for the model: lossy, and only where the server allows it."
    )

    @property
    def lossy(self) -> VisualCompression | None:
        """What becomes of pictures; ``None``: what the server was started with."""
        asked = self.visual_compression
        return None if asked is None else VisualCompression(method=asked.method, ratio=asked.ratio)
