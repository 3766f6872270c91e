"""How models spell calls of functions, one ``ToolStyle`` each, and which of them a template was made for.

An answer with calls is ``begin opening call (separator call)* closing``, where a call is ``head`` with the
function's name in it, the arguments as JSON, and ``tail``. Text may come before ``begin``. Pure data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NAME: Final = "{name}"
MARK: Final = r"<\S+?>|\[[A-Z_]+\]"
"""What may be a special token in some tokenizer."""


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """``begin`` is empty where calls have no marker: then an answer is either all text or all calls.
    ``also``: tokens that models of this style write besides, and that mean nothing. ``short_ids``: calls are
    told apart by nine letters and digits.
    """

    name: str
    begin: str
    opening: str
    head: str
    tail: str
    separator: str
    closing: str
    also: tuple[str, ...] = ()
    short_ids: bool = False

    @property
    def wraps(self) -> bool:
        """Whether a call is a JSON object with the name and the arguments in it."""
        return self.head.startswith('{"')


HERMES: Final = ToolStyle(
    name="hermes",
    begin="<tool_call>",
    opening="\n",
    head='{"name": "{name}", "arguments": ',
    tail="}",
    separator="\n</tool_call>\n<tool_call>\n",
    closing="\n</tool_call>",
)

LLAMA3_JSON: Final = ToolStyle(
    name="llama3_json",
    begin="",
    opening="",
    head='{"name": "{name}", "parameters": ',
    tail="}",
    separator="; ",
    closing="",
    also=("<|python_tag|>",),
)

MISTRAL: Final = ToolStyle(
    name="mistral",
    begin="[TOOL_CALLS]",
    opening="[",
    head='{"name": "{name}", "arguments": ',
    tail="}",
    separator=", ",
    closing="]",
    short_ids=True,
)

MISTRAL_ARGS: Final = ToolStyle(
    name="mistral",
    begin="[TOOL_CALLS]",
    opening="",
    head="{name}[ARGS]",
    tail="",
    separator="[TOOL_CALLS]",
    closing="",
    short_ids=True,
)


def marks_of(style: ToolStyle) -> set[str]:
    """What an answer with calls may hold besides names and arguments and might be a special token."""
    text = style.begin + style.opening + style.head + style.tail + style.separator + style.closing
    return {*re.findall(MARK, text), *style.also}


def detect_style(template: str) -> ToolStyle | None:
    """The style that a chat template writes calls in; ``None`` if it is none of these."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template and not any(other in template for other in ("<function=", "<arg_key>")):
        return HERMES
    if '"parameters": ' in template and ("<|python_tag|>" in template or "ipython" in template):
        return LLAMA3_JSON
    return None


def chosen_style(parser: str, template: str) -> ToolStyle:
    """That of the operator's choice; both of Mistral's are called the same."""
    if parser == "mistral":
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    return {"hermes": HERMES, "llama3_json": LLAMA3_JSON}[parser]
