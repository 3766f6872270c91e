"""Functions that a model may call, and the format of its answer, as in the OpenAI API."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from processing.tools.request import ChoiceFormat, Format, JsonFormat, RegexFormat, Tool
from server.schemas.base import MAX_SHOWN, NO_EFFECT, ClientModel, JsonObject

MAX_SCHEMA_SIZE: Final = 100_000
"""Approximate maximum size of one schema, in characters. The engine bounds the grammar of all together."""
MAX_SCHEMA_DEPTH: Final = 64
MAX_TOOLS: Final = 128
MAX_TOOLS_SIZE: Final = 400_000


def check_schema(schema: JsonObject) -> JsonObject:
    """Check the size and depth of a schema. Its contents are left to the grammar compiler."""
    schema_size(schema)
    return schema


def schema_size(schema: JsonObject) -> int:
    """Return the approximate size in characters. Raises an error if it is too large or nested too deeply."""
    size, level = 0, list[Any]([schema])
    for _ in range(MAX_SCHEMA_DEPTH):
        inner: list[Any] = []
        for value in level:
            size += 8
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, int):
                size += value.bit_length() // 3
            elif isinstance(value, dict):
                size += sum(map(len, value))
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            if size > MAX_SCHEMA_SIZE:
                raise PydanticCustomError("schema_too_large", "this schema is too large")
        if not inner:
            return size
        level = inner
    raise PydanticCustomError("schema_too_deep", "this schema is nested too deeply")


SchemaObject = Annotated[JsonObject, AfterValidator(check_schema)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.:/-]{1,64}$")]


class FunctionDefinition(ClientModel):
    name: FunctionName
    description: str | None = None
    parameters: SchemaObject | None = None
    strict: bool | None = Field(
        None, description="Enforce the schema on arguments exactly; a 400 if that is not possible."
    )

    @field_validator("parameters")
    @classmethod
    def _are_of_an_object(cls, value: JsonObject | None, info: ValidationInfo) -> JsonObject | None:
        """No client could call a function with arguments that are not an object."""
        kind = (value or {}).get("type", "object")
        if "object" not in (kind if isinstance(kind, list) else [kind]):
            raise PydanticCustomError(
                "no_object",
                "'type' must be 'object', as the function '{function}' takes named arguments; got {kind}",
                {"function": info.data.get("name", ""), "kind": json.dumps(kind)[:MAX_SHOWN]},
            )
        return value


class FunctionTool(ClientModel):
    type: Literal["function"]
    function: FunctionDefinition

    @property
    def size(self) -> int:
        """Approximate size in characters."""
        told = self.function
        return len(told.name) + len(told.description or "") + schema_size(told.parameters or {})

    @property
    def as_tool(self) -> Tool:
        told = self.function
        return Tool(told.name, told.description, told.parameters, bool(told.strict))


class NamedFunction(ClientModel):
    name: str


class NamedTool(ClientModel):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(ClientModel):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(ClientModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)


class CalledFunction(ClientModel):
    name: FunctionName
    arguments: str
    parsed_arguments: Annotated[Any, NO_EFFECT] = Field(None, description="Set by the openai package.")


class CalledTool(ClientModel):
    """A call in an assistant message, as sent back by clients."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: Annotated[int | None, NO_EFFECT] = Field(None, description="Kept by clients from a stream.")


class TextFormat(ClientModel):
    type: Literal["text"]

    @property
    def as_format(self) -> JsonFormat | None:
        return None


class JsonObjectFormat(ClientModel):
    type: Literal["json_object"]

    @property
    def as_format(self) -> JsonFormat | None:
        return JsonFormat({"type": "object"})


class JsonSchema(ClientModel):
    name: Annotated[str, NO_EFFECT] = Field(max_length=256)
    description: Annotated[str | None, NO_EFFECT] = Field(None, max_length=MAX_SCHEMA_SIZE)
    schema_: SchemaObject | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="False ignores keywords that cannot be enforced.")


class JsonSchemaFormat(ClientModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema

    @property
    def as_format(self) -> JsonFormat | None:
        told = self.json_schema
        return JsonFormat(told.schema_ if told.schema_ is not None else {"type": "object"}, bool(told.strict))


Choice = Annotated[str, Field(min_length=1, max_length=1024)]


class StructuredOutputs(ClientModel):
    """vLLM's way to request a format of the answer; exactly one field is set."""

    json_: SchemaObject | None = Field(None, alias="json", description="A JSON schema.")
    json_object: Literal[True] | None = None
    regex: str | None = Field(None, min_length=1, max_length=8192, description="Must match the whole answer.")
    choice: list[Choice] | None = Field(
        None, min_length=1, max_length=1024, description="The answer is one of these texts."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise PydanticCustomError(
                "invalid_combination",
                "'{name}' takes exactly one of 'json', 'json_object', 'regex' and 'choice'.",
                {"name": "structured_outputs"},
            )
        return self

    @property
    def as_format(self) -> Format | None:
        if self.regex is not None:
            return RegexFormat(self.regex)
        if self.choice is not None:
            return ChoiceFormat(tuple(self.choice))
        return JsonFormat(self.json_ if self.json_ is not None else {"type": "object"})


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
