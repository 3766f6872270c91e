"""Answers about the server and what it serves."""

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
    """What proposes tokens, and the upper limits of its trees."""

    draft: str = Field(description="'eagle', 'ngram' or 'none'")
    num_steps: int
    topk: int
    num_draft_tokens: int
    compressors: list[str] = Field(description="What 'speculative.compressor' may be.")


class LossyPictures(AnswerModel):
    """What becomes of pictures before the model sees them."""

    method: str = Field(description="'none', 'pool' or 'prune'")
    ratio: float


class Version(AnswerModel):
    version: str
    speculative: Drafting | None = Field(description="Null until the model is loaded.")
    visual_compression: LossyPictures | None = Field(
        description="Of requests that do not say; null where none may be asked for."
    )


class Status(AnswerModel):
    status: str
