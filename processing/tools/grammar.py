"""The grammar of an answer, in llguidance's language: JSON, function calls, or text followed by calls.

Whatever a client sends is inserted as JSON; none of it is parsed as part of the language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from processing.tools.request import (
    ChoiceFormat,
    Format,
    JsonFormat,
    OutputRequest,
    RegexFormat,
    Schema,
    Tool,
)
from processing.tools.styles import MARK, NAME, ToolStyle

TokenId = Callable[[str], int | None]
"""Returns the id of a special token; ``None`` if the text is not one."""

# Models were trained on calls as ``json.dumps`` writes them. The layout of other answers is up to the model,
# but one that only adds white space would never end.
CALL_LAYOUT: dict[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
ANSWER_LAYOUT: dict[str, Any] = {"whitespace_pattern": "[ \\t\\n\\r]{1,32}"}

NAMES_PROPERTIES = (
    "properties",
    "patternProperties",
    "required",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "enum",
    "const",
)

PIECES = re.compile(rf'({MARK}|"[^"]*"|[{{}}]|[:,] )')
ESCAPED = {"/": "\\/", "\n": "\\n", "\r": "\\r", "\\\n": "\\n", "\\\r": "\\r"}
TEXT = r"TEXT: /(.|\n)*/"
NO_OBJECT = r"TEXT: /([^{](.|\n)*)?/"


def answer_grammar(request: OutputRequest, style: ToolStyle, special: TokenId) -> str | None:
    """Return the grammar; ``None`` if there is neither a format nor a function that may be called."""
    tools = request.callable_tools
    if not tools:
        return None if request.format is None else answer_rule("start", request.format, ANSWER_LAYOUT)
    calls = call_rules(tools, style, special, parallel=request.parallel)
    if request.mode == "required":
        rules = ["start: calls"]
    elif request.format is not None:
        # In the layout of calls: an answer and a call may begin alike and differ in what follows.
        rules = ["start: answer | calls", answer_rule("answer", request.format, CALL_LAYOUT)]
    else:
        rules = text_or_calls(style, special)
    return "\n".join([*rules, *calls])


def explained(reason: str, tools: Sequence[Tool]) -> tuple[str, bool]:
    """Return the engine's error, naming the function instead of its rule, and whether there is one."""
    rule = re.search(r"in '(?:call_(\d+)|\w+)': ", reason)
    tool = dict(enumerate(tools)).get(int(rule[1])) if rule and rule[1] else None
    place = f"in the parameters of the function '{tool.name}': " if tool else ""
    return reason.replace(rule[0], place, 1) if rule else reason, tool is not None


def call_rules(tools: Sequence[Tool], style: ToolStyle, special: TokenId, *, parallel: bool) -> list[str]:
    """Return the rules of calls: ``calls`` begins with the style's marker, ``rest`` after it."""
    separator = terminals(style.separator, special)
    more = f" ({separator} call)*" if parallel else ""
    rest = f"rest: {terminals(style.opening, special)} call{more} {terminals(style.closing, special)}"
    names = " | ".join(f"call_{i}" for i in range(len(tools)))
    rules = [f"calls: {terminals(style.begin, special)} rest", rest, f"call: {names}"]
    for i, tool in enumerate(tools):
        head = terminals(style.head.replace(NAME, tool.name), special)
        schema = json_rule(arguments_schema(tool.parameters or {}), CALL_LAYOUT, strict=tool.strict)
        rules.append(f"call_{i}: {head} {schema} {terminals(style.tail, special)}")
    return rules


def arguments_schema(parameters: Schema) -> Schema:
    """Return a schema of objects only, even if ``parameters`` allows more. In JSON Schema, an object without
    declared properties may have any, which is not what a function without parameters means: a model would
    invent arguments without end.
    """
    names_some = any(parameters.get(keyword) for keyword in NAMES_PROPERTIES)
    closed = {} if names_some else {"additionalProperties": False}
    return {**closed, **parameters, "type": "object"}


def text_or_calls(style: ToolStyle, special: TokenId) -> list[str]:
    """Return rules for text that calls may follow, from the style's marker to the end."""
    if not style.begin:
        return ["start: TEXT | calls", NO_OBJECT]
    if special(style.begin) is not None:
        return ["start: TEXT | TEXT calls", TEXT]
    # A lazy lexeme ends at the first marker, so that text never continues after one.
    marked = f"marked[lazy]: TEXT {terminals(style.begin, special)}"
    return ["start: TEXT | marked rest", marked, TEXT]


def answer_rule(name: str, form: Format, layout: dict[str, Any]) -> str:
    match form:
        case JsonFormat():
            return f"{name}: {json_rule(form.schema, layout, strict=form.strict)}"
        case RegexFormat():
            return f"{name}: {regex(form.pattern)}"
        case ChoiceFormat():
            return f"{name}: {' | '.join(map(literal, form.choices))}"


def regex(pattern: str) -> str:
    """Return ``pattern`` between slashes, on one line. What is already escaped stays so."""
    escaped = re.sub(r"\\.|[/\n\r]", lambda found: ESCAPED.get(found[0], found[0]), pattern, flags=re.DOTALL)
    return f"/{escaped}/"


def json_rule(schema: Schema, layout: dict[str, Any], *, strict: bool) -> str:
    """Return the rule of a JSON schema; the client's own ``x-guidance``, if any, is overridden."""
    return "%json " + json.dumps({**schema, "x-guidance": layout | {"lenient": not strict}})


def terminals(text: str, special: TokenId) -> str:
    """Return ``text`` as string literals and special tokens, which have no characters of their own. JSON is
    split as a JSON answer would be: a common beginning must be the same lexeme in both.
    """
    ids = [(part, special(part)) for part in PIECES.split(text) if part]
    return " ".join(literal(part) if token_id is None else f"<[{token_id}]>" for part, token_id in ids)


def literal(text: str) -> str:
    """Return a string literal: JSON with all control characters escaped, some of which JSON would allow."""
    written = json.dumps(text, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", written)
