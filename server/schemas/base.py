"""The two kinds of schema: what a client sends is strict, what we answer is ours."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError

JsonObject = dict[str, Any]

MAX_SHOWN: Final = 100
"""Of a value that a client may have made long, in a complaint or in the log."""

MAX_FIELDS: Final = 1024
"""Of an object whose fields or values are checked."""


def fail_fast(schema: Any) -> None:
    """Let every list in a schema of pydantic's end at its first wrong item."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            fail_fast(part)
    elif isinstance(schema, list):
        for part in schema:
            fail_fast(part)


def few_fields(value: Any) -> Any:
    """A validator for what comes before all others of an object."""
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise PydanticCustomError(
            "too_many_fields", "An object has more than {limit} fields.", {"limit": MAX_FIELDS}
        )
    return value


def _only_optional(field: FieldInfo | None) -> bool:
    """Whether it may be left out, and null is none of its values."""
    if field is None or field.is_required():
        return False
    return NoneType not in (field.annotation, *get_args(field.annotation))


class ClientModel(BaseModel):
    """Sent by a client: unknown fields, NaN and values of another JSON type are refused.

    A complaint costs far more than a value, so there are few of them whatever was sent: the first wrong item
    of a list ends it, and what has too many fields is looked at no further.
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
        """Null is as if the field were left out, as in the OpenAI API, where it says nothing of its own."""
        value = few_fields(value)
        if not isinstance(value, dict) or None not in value.values():
            return value
        fields = cls.model_fields
        left_out = {name for name, one in value.items() if one is None and _only_optional(fields.get(name))}
        return {name: one for name, one in value.items() if name not in left_out}


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
