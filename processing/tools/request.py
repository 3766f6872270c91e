"""The requested format of an answer, whatever API the request came through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["none", "auto", "required"]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function. ``strict``: its arguments obey ``parameters`` exactly, or the request is rejected."""

    name: str
    description: str | None = None
    parameters: Schema | None = None
    strict: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return the tool in the format of the OpenAI API, which chat templates expect."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters if self.parameters is not None else EMPTY_PARAMETERS
        return {"type": "function", "function": function}


EMPTY_PARAMETERS: Schema = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is JSON that obeys ``schema``; keywords that cannot be enforced are ignored unless
    ``strict``.
    """

    schema: Schema
    strict: bool = False


@dataclass(frozen=True, slots=True)
class RegexFormat:
    """The whole answer matches ``pattern``."""

    pattern: str


@dataclass(frozen=True, slots=True)
class ChoiceFormat:
    """The answer is one of these texts."""

    choices: tuple[str, ...]


Format = JsonFormat | RegexFormat | ChoiceFormat


@dataclass(frozen=True, slots=True)
class OutputRequest:
    """``callable_names``: names of the ``tools`` that may be called; ``None``: all. ``mode`` ``required``: at
    least one must be called. Without ``parallel``, at most one is.
    """

    tools: tuple[Tool, ...] = ()
    mode: Mode = "none"
    callable_names: frozenset[str] | None = None
    parallel: bool = True
    format: Format | None = None

    @property
    def callable_tools(self) -> list[Tool]:
        if self.mode == "none":
            return []
        names = self.callable_names
        return [tool for tool in self.tools if names is None or tool.name in names]
