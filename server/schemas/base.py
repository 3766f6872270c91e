"""The two kinds of schema: what a client sends is strict, what we answer is ours."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ClientModel(BaseModel):
    """Sent by a client: unknown fields, NaN and values of another JSON type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class AnswerModel(BaseModel):
    """Sent to a client."""

    model_config = ConfigDict(frozen=True)
