"""How models write function calls, one ``ToolStyle`` each, and detection of the style that a template uses.

An answer with calls is ``begin opening call (separator call)* closing``, where a call is ``head`` with the
function's name in it, the arguments as JSON, and ``tail``. Text may come before ``begin``. Pure data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

NAME: Final = "{name}"
MARK: Final = r"<\S+?>|\[[A-Z_]+\]"
"""Matches text that may be a special token in some tokenizers."""


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """``begin`` is empty if calls have no marker: then an answer is either all text or all calls. ``also``:
    further tokens that models of this style write, which have no meaning. ``short_ids``: ids of calls consist
    of nine letters and digits.
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
        """Whether a call is a JSON object that contains the name and the arguments."""
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
    """Return the parts of calls, besides names and arguments, that might be special tokens."""
    text = style.begin + style.opening + style.head + style.tail + style.separator + style.closing
    return {*re.findall(MARK, text), *style.also}


def detect_style(template: str) -> ToolStyle | None:
    """Return the style in which a chat template writes calls; ``None`` if it is not one of these."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if "<tool_call>" in template and not any(other in template for other in ("<function=", "<arg_key>")):
        return HERMES
    if '"parameters": ' in template and ("<|python_tag|>" in template or "ipython" in template):
        return LLAMA3_JSON
    return None


def chosen_style(parser: str, template: str) -> ToolStyle:
    """Return the style chosen by the operator; both of Mistral's have the same name."""
    if parser == "mistral":
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    return {"hermes": HERMES, "llama3_json": LLAMA3_JSON}[parser]
