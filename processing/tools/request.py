"""What a client asks of an answer's form, whatever API it came by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["none", "auto", "required"]
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function. ``strict``: its arguments obey ``parameters`` to the letter, or the request is refused."""

    name: str
    description: str | None = None
    parameters: Schema | None = None
    strict: bool = False

    def as_json(self) -> dict[str, Any]:
        """As the OpenAI API spells it, which is what chat templates read."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters if self.parameters is not None else EMPTY_PARAMETERS
        return {"type": "function", "function": function}


EMPTY_PARAMETERS: Schema = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer is JSON that obeys ``schema``; keywords that cannot be enforced are left out unless
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
    """``callable_names``: those of ``tools`` that may be called; ``None``: all. ``mode`` ``required``: at
    least one must be. Without ``parallel`` at most one is.
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
