"""Base classes of the schemas: strict ones for what clients send, plain ones for what the server sends."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

JsonObject = dict[str, Any]

MAX_SHOWN: Final = 100
"""Characters of a client's value that are quoted in an error message or in the log."""

MAX_FIELDS: Final = 1024
"""Maximum number of fields of an object whose fields or values are checked."""


def fail_fast(schema: Any) -> None:
    """Make validation of every list in a pydantic core schema stop at the first invalid item."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            fail_fast(part)


def few_fields(value: Any) -> Any:
    """Check the number of fields; a validator to run before all others of an object."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise PydanticCustomError(
            "too_many_fields", "An object has more than {limit} fields.", {"limit": MAX_FIELDS}
        )
    return value


def _only_optional(field: FieldInfo | None) -> bool:
    """Whether the field may be left out but does not accept null."""
    if field is None or field.is_required():
        return False
    return NoneType not in (field.annotation, *get_args(field.annotation))


class ClientModel(BaseModel):
    """Base class of what clients send: unknown fields, NaN and values of another JSON type are rejected.

    Reporting an error costs far more than checking a value, so the number of errors is bounded: a list is
    checked up to its first invalid item, and an object with too many fields is not checked at all.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        fail_fast(schema)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        """Treat null like a missing field, as the OpenAI API does, unless null has a meaning of its own."""
        value = few_fields(value)
        if not isinstance(value, dict) or None not in value.values():
            return value
        fields = cls.model_fields
        left_out = {name for name, one in value.items() if one is None and _only_optional(fields.get(name))}
        return {name: one for name, one in value.items() if name not in left_out}


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field that would change the answer and is not supported. Only the values in ``unless`` are
    accepted; the error for any other includes ``instead``, a sentence that says what to send."""

    unless: tuple[object, ...] = (None,)
    instead: str = ""


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """Marks a field that is accepted and has no effect."""


NO_EFFECT: Final = WithoutEffect()


class RequestModel(ClientModel):
    """Base class of whole requests."""

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
    """Whether to leave out a field; for ``exclude_if``."""
    return value is None


class AnswerModel(BaseModel):
    """Base class of what is sent to clients."""

    model_config = ConfigDict(frozen=True)
