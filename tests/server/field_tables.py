"""Every field of every request, read from the schemas, as the tables of ``docs/api.md``.

``python -m tests.server.field_tables`` writes them anew; a test says when that is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from server.schemas.base import ClientModel, Refused, WithoutEffect
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.responses import ResponsesRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeChat, TokenizeText
from tests.imports import ROOT

PAGE = ROOT / "docs" / "api.md"
BEGIN, END = "<!-- Made by python -m tests.server.field_tables -->\n", "<!-- End of what was made -->\n"

ANSWERS = {"chat": ChatRequest, "completions": CompletionRequest, "responses": ResponsesRequest}
TOKENS = {"tokenize, text": TokenizeText, "tokenize, chat": TokenizeChat, "detokenize": DetokenizeRequest}

LARGE = 2**31 - 1
JSON_NAMES = {"string": "text", "boolean": "true or false", "array": "list"}


@dataclass(frozen=True)
class Field:
    """``path`` as ``messages[].content[].text``; ``status``: works, no effect or refused."""

    path: str
    status: str
    takes: tuple[str, ...]
    about: str


def joined(one: Field | None, other: Field) -> Field:
    """What two kinds of an object, or two endpoints, call by the same name."""
    if one is None:
        return other
    takes = tuple(dict.fromkeys(one.takes + other.takes))
    return Field(one.path, one.status, takes, one.about or other.about)


def fields_of(model: type[ClientModel], prefix: str = "") -> dict[str, Field]:
    """Of the model and of all that it holds, each path once."""
    found: dict[str, Field] = {}
    for name, info in model.model_fields.items():
        path = prefix + (info.alias or name)
        found[path] = joined(found.get(path), Field(path, status(info), takes(info), about(info)))
        for held, suffix in models_in(info.annotation):
            for inner in fields_of(held, f"{path}{suffix}.").values():
                found[inner.path] = joined(found.get(inner.path), inner)
    return found


def status(info: FieldInfo) -> str:
    kinds = {type(mark) for mark in info.metadata}
    if Refused in kinds or info.annotation is NoneType or (info.description or "").startswith("Refused"):
        return "refused"
    return "no effect" if WithoutEffect in kinds else "works"


def models_in(annotation: Any, suffix: str = "") -> Iterator[tuple[type[ClientModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, ClientModel):
        yield annotation, suffix
    elif get_origin(annotation) is not dict:
        inner = suffix + ("[]" if get_origin(annotation) is list else "")
        for one in get_args(annotation):
            yield from models_in(one, inner)


def takes(info: FieldInfo) -> tuple[str, ...]:
    """In words; ``null`` is left out, as most fields take it."""
    annotation: Any = info.annotation
    for mark in info.metadata:
        annotation = Annotated[annotation, mark]
    schema = TypeAdapter(annotation).json_schema()
    return tuple(dict.fromkeys(words(schema, schema.get("$defs", {}))))


def words(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    for choice in schema.get("anyOf") or schema.get("oneOf") or ():
        yield from words(choice, definitions)
    if "const" in schema or "enum" in schema:
        for value in schema.get("enum", [schema.get("const")]):
            yield f"`{value}`"
    elif (kind := schema.get("type", "null")) != "null":
        low, high = schema.get("minimum", -LARGE), schema.get("maximum", LARGE)
        above, most = schema.get("exclusiveMinimum"), schema.get("maxLength")
        bounds = [
            "" if above is None else f"above {above}",
            f"from {low}" if low > -LARGE else "",
            f"to {high}" if high < LARGE else "",
            f"of up to {most} characters" if kind == "string" and most else "",
        ]
        yield " ".join(filter(None, [JSON_NAMES.get(kind, kind), *bounds]))


def about(info: FieldInfo) -> str:
    told = [info.description or ""]
    for mark in info.metadata:
        if isinstance(mark, Refused):
            if named := ", ".join(f"`{as_json(value)}`" for value in mark.unless if value is not None):
                told.append(f"Only {named}.")
            told.append(mark.instead)
    return " ".join(filter(None, told)).replace("|", "\\|")


def as_json(value: object) -> str:
    return TypeAdapter(Any).dump_json(value).decode()


def table(endpoints: dict[str, type[ClientModel]]) -> str:
    """One row a field, one column an endpoint; an empty cell: unknown there."""
    columns = {name: fields_of(model) for name, model in endpoints.items()}
    paths = sorted({path for fields in columns.values() for path in fields}, key=str.lower)
    lines = [
        f"| field | takes | {' | '.join(columns)} | |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for path in paths:
        known = reduce(joined, (fields[path] for fields in columns.values() if path in fields))
        cells = [fields[path].status if path in fields else "" for fields in columns.values()]
        lines.append(f"| `{path}` | {' or '.join(known.takes)} | {' | '.join(cells)} | {known.about} |")
    return "\n".join(lines) + "\n"


def tables() -> str:
    return f"{BEGIN}\n{table(ANSWERS)}\n{table(TOKENS)}\n{END}"


def with_tables(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + tables() + after


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
