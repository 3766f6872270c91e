"""The two kinds of schema: what a client sends is strict, what we answer is ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

JsonObject = dict[str, Any]


class ClientModel(BaseModel):
    """Sent by a client: unknown fields, NaN and values of another JSON type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that would change the answer and is not built. Values but these are refused by name;
    ``instead``, a sentence, says what to send."""

    unless: tuple[object, ...] = (None,)
    instead: str = ""


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """Marks a field that is accepted and changes nothing."""


NO_EFFECT: Final = WithoutEffect()


class RequestModel(ClientModel):
    """A whole request."""

    @model_validator(mode="after")
    def _refuses_what_is_not_built(self) -> Self:
        for name, field in type(self).model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, Refused) and getattr(self, name) not in mark.unless:
                    raise refusal(name, mark.instead)
        return self


def refusal(name: str, instead: str = "") -> PydanticCustomError:
    return PydanticCustomError(
        "unsupported_parameter",
        "'{name}' is not supported by this server.{instead}",
        {"name": name, "instead": instead and f" {instead}"},
    )


def is_absent(value: object) -> bool:
    """For ``exclude_if``."""
    return value is None


class AnswerModel(BaseModel):
    """Sent to a client."""

    model_config = ConfigDict(frozen=True)
