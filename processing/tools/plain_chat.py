"""Tools for models whose chat templates do not know any: described in the system message, called as text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from processing.chat import ChatMessage, ImagePart, TextPart
from processing.tools.request import Tool
from processing.tools.styles import NAME, ToolStyle

PREAMBLE = """\
You may call functions to help the user. Each line describes one as JSON:
<tools>
{tools}
</tools>
To call functions, write for each a JSON object with its name and arguments, in this way:
{example}"""


def with_tools_as_text(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], style: ToolStyle
) -> list[ChatMessage]:
    """Return a chat in which tools occur only as text. Consecutive tool results become one user message, as
    many templates want users and assistants to take turns.
    """
    runs: list[list[ChatMessage]] = [] if not tools else [[ChatMessage("system", preamble(tools, style))]]
    for message in messages:
        told = _as_text(message, style)
        role = runs[-1][0].role if runs else None
        if told.role == role and (message.role == "tool" or role == "system"):
            runs[-1].append(told)
        else:
            runs.append([told])
    return [run[0] if len(run) == 1 else _joined(run) for run in runs]


def preamble(tools: Sequence[Tool], style: ToolStyle) -> str:
    described = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in tools)
    example = written_calls([("function_name", '{"argument": "value"}')], style)
    return PREAMBLE.replace("{tools}", described).replace("{example}", example)


def written_calls(calls: Iterable[tuple[str, str]], style: ToolStyle) -> str:
    """Return pairs of name and arguments (JSON) as a model of this style writes them."""
    written = [style.head.replace(NAME, name) + arguments + style.tail for name, arguments in calls]
    return style.begin + style.opening + style.separator.join(written) + style.closing


def _as_text(message: ChatMessage, style: ToolStyle) -> ChatMessage:
    if message.role == "tool":
        answer = "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
        return ChatMessage("user", f"<tool_response>\n{answer}\n</tool_response>")
    calls = message.extra.get("tool_calls")
    if not calls:
        return message
    written = written_calls([_name_and_arguments(call) for call in calls], style)
    extra = {name: value for name, value in message.extra.items() if name != "tool_calls"}
    text = "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
    return ChatMessage(message.role, f"{text}\n{written}" if text else written, extra)


def _name_and_arguments(call: Any) -> tuple[str, str]:
    return call["function"]["name"], call["function"]["arguments"]


def _joined(run: Sequence[ChatMessage]) -> ChatMessage:
    """Join a run of messages. Texts that meet become one part, since templates put nothing between parts, or
    trim them. All at once: one by one, thousands of texts would be copied thousands of times.
    """
    joined: list[list[str] | ImagePart] = []
    for message in run:
        for index, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                joined.append(part)
            elif index == 0 and joined and isinstance(last := joined[-1], list):
                last.append(part.text)
            else:
                joined.append([part.text])
    separator = "\n\n" if run[0].role == "system" else "\n"
    parts = [part if isinstance(part, ImagePart) else TextPart(separator.join(part)) for part in joined]
    alone = parts[0] if len(parts) == 1 else None
    return replace(run[0], content=alone.text if isinstance(alone, TextPart) else parts)
