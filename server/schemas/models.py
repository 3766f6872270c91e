"""Answers about the server and what it serves."""

from __future__ import annotations

from typing import Literal

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


class Version(AnswerModel):
    version: str


class Status(AnswerModel):
    status: str
