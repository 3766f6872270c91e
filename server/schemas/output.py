"""Fields of a chat that constrain its answer: a format, tools and the choice of tools."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from processing.tools.request import Mode, OutputRequest
from server.schemas.base import ClientModel, few_fields
from server.schemas.tools import (
    MAX_TOOLS,
    MAX_TOOLS_SIZE,
    AllowedToolsChoice,
    FunctionTool,
    NamedTool,
    ResponseFormat,
    StructuredOutputs,
    ToolChoice,
)

TemplateArgument = bool | int | float | Annotated[str, Field(max_length=1024)] | None


class OutputFields(ClientModel):
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="In vLLM's format.")
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = Field(None, description="'auto' by default if there are tools.")
    parallel_tool_calls: bool | None = Field(None, description="False allows at most one call.")
    chat_template_kwargs: Annotated[dict[str, TemplateArgument], BeforeValidator(few_fields)] | None = Field(
        None, max_length=16, description="Variables that the model's chat template reads; others are refused."
    )

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        if self.response_format is not None and self.structured_outputs is not None:
            raise PydanticCustomError(
                "invalid_combination",
                "'{name}' and 'response_format' cannot be combined.",
                {"name": "structured_outputs"},
            )
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise PydanticCustomError(
                "invalid_combination", "'{name}' has two functions with the same name.", {"name": "tools"}
            )
        if sum(tool.size for tool in self.tools or ()) > MAX_TOOLS_SIZE:
            raise PydanticCustomError(
                "invalid_combination", "The functions in '{name}' are too large in total.", {"name": "tools"}
            )
        if self.tool_choice in (None, "none", "auto"):
            return self
        unknown = (self._chosen or frozenset[str]()) - set(names)
        if unknown:
            raise PydanticCustomError(
                "invalid_combination",
                "'{name}' names '{function}', which is not in 'tools'.",
                {"name": "tool_choice", "function": min(unknown)},
            )
        if not names:
            raise PydanticCustomError(
                "invalid_combination", "'{name}' needs 'tools'.", {"name": "tool_choice"}
            )
        return self

    @property
    def _chosen(self) -> frozenset[str] | None:
        """Names of the functions that may be called, or ``None`` if all may."""
        match self.tool_choice:
            case NamedTool(function=function):
                return frozenset({function.name})
            case AllowedToolsChoice(allowed_tools=allowed):
                return frozenset(tool.function.name for tool in allowed.tools)
            case _:
                return None

    @property
    def output(self) -> OutputRequest:
        mode: Mode
        match self.tool_choice:
            case NamedTool():
                mode = "required"
            case AllowedToolsChoice(allowed_tools=allowed):
                mode = allowed.mode
            case None:
                mode = "auto"
            case told:
                mode = told
        return OutputRequest(
            tools=tuple(tool.as_tool for tool in self.tools or ()),
            mode=mode if self.tools else "none",
            callable_names=self._chosen,
            parallel=self.parallel_tool_calls is not False and not isinstance(self.tool_choice, NamedTool),
            format=form.as_format if (form := self.response_format or self.structured_outputs) else None,
        )
