"""A model's support for tools and formats, and the plan for a request: prompt, grammar and reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from processing.chat import ChatMessage
from processing.tools.grammar import answer_grammar, explained
from processing.tools.plain_chat import with_tools_as_text
from processing.tools.reader import CallReader
from processing.tools.request import OutputRequest, Tool
from processing.tools.styles import HERMES, ToolStyle, chosen_style, detect_style, marks_of


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How the model is told about the tools of a request, and how its answer is constrained and parsed.

    ``tools``: those for the chat template; ``add_tools`` puts them into the messages if there are none for
    it. ``shown_ids``: special tokens that the reader must see in the text; ``callable_tools``: those with
    rules in the grammar, in their order.
    """

    grammar: str | None = None
    tools: list[dict[str, Any]] | None = None
    style: ToolStyle | None = None
    callable_tools: Sequence[Tool] = ()
    shown_ids: frozenset[int] = frozenset()
    add_tools: Callable[[Sequence[ChatMessage]], Sequence[ChatMessage]] = field(
        default=lambda messages: messages
    )

    def reader(self) -> CallReader | None:
        """Return a new reader, one for each choice; ``None`` if all text is content."""
        names = {tool.name for tool in self.callable_tools}
        return None if self.style is None else CallReader(self.style, names)

    def explained(self, reason: str) -> tuple[str, bool]:
        """Return the engine's grammar error in terms of the request, and whether it is about tools."""
        return explained(reason, self.callable_tools)


FREE: Final = OutputPlan()
"""Unconstrained text without function calls."""


class ToolSupport:
    """``takes_tools``: whether the model's chat template does. ``parser``: a style's name, or ``auto``.

    ``special_id`` returns the id of a special token by its text, ``None`` if there is none. A model whose
    template does not know tools, or writes calls in an unknown style, is told about tools in its messages.
    """

    def __init__(
        self,
        template: str,
        *,
        takes_tools: bool,
        special_id: Callable[[str], int | None],
        parser: str = "auto",
    ) -> None:
        found = detect_style(template) if parser == "auto" else chosen_style(parser, template)
        self.native = takes_tools and found is not None
        self.style = found or HERMES
        self._special_id = special_id
        shown = map(special_id, marks_of(self.style))
        self._shown_ids = frozenset(token_id for token_id in shown if token_id is not None)

    def plan(self, request: OutputRequest) -> OutputPlan:
        callable_tools = request.callable_tools
        tools = request.tools if request.mode != "none" else ()
        grammar = None
        if request.format is not None or (callable_tools and self._is_constrained(request)):
            grammar = answer_grammar(request, self.style, self._special_id)

        def add_tools(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
            return messages if self.native else with_tools_as_text(messages, tools, self.style)

        return OutputPlan(
            grammar=grammar,
            tools=[tool.as_json() for tool in tools] if tools and self.native else None,
            style=self.style if callable_tools else None,
            callable_tools=callable_tools,
            shown_ids=self._shown_ids if callable_tools else frozenset(),
            add_tools=add_tools,
        )

    def _is_constrained(self, request: OutputRequest) -> bool:
        """Whether a grammar must constrain calls. A model trained for tools writes good calls by itself,
        except where something is guaranteed: that it calls at all, at most once, only some functions, or with
        strictly valid arguments.
        """
        free = request.mode == "auto" and request.parallel and request.callable_names is None
        return not (self.native and free) or any(tool.strict for tool in request.callable_tools)
