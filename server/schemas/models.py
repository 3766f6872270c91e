"""Responses about the server and the models it serves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from server.schemas.base import AnswerModel


class ModelCard(AnswerModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "specvlm"
    root: str
    max_model_len: int | None


class ModelList(AnswerModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Drafting(AnswerModel):
    """The source of draft tokens, and the upper limits of its trees."""

    draft: str = Field(description="'eagle', 'ngram' or 'none'")
    num_steps: int
    topk: int
    num_draft_tokens: int
    compressors: list[str] = Field(description="Allowed values of 'speculative.compressor'.")


class AllowedVisualCompression(AnswerModel):
    """How pictures are compressed before the model sees them."""

    method: str = Field(description="'none', 'pool' or 'prune'")
    ratio: float


class Version(AnswerModel):
    version: str
    speculative: Drafting | None = Field(description="Null until the model is loaded.")
    visual_compression: AllowedVisualCompression | None = Field(
        description="Default for requests that do not specify it; null if the server does not allow it."
    )


class Status(AnswerModel):
    status: str
