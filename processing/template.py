"""Chat templates: the form of messages they expect, and which tokens of the text are control tokens.

A template either prints ``message['content']`` or iterates over its parts. Rendering a probe shows which, for
every role, since many templates treat system messages or results of tools differently. Knows Jinja through
transformers; does not know pictures (only their places in a message) or token ids.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables

from processing.chat import ChatMessage, ImagePart, TextPart
from processing.control import Marks, Range, TokenSet
from processing.errors import PromptError

# Roles that templates build control tokens from; any other role is a user's text.
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython", "model"})
PROBE = "specvlm-probe-0d1f"
# What messages of each role may follow. (Some templates want an id of nine characters.)
_USER: dict[str, Any] = {"role": "user", "content": "x"}
_CALL = {"id": "specvlm01", "type": "function", "function": {"name": "x", "arguments": {}}}
_BEFORE: dict[str, list[dict[str, Any]]] = {
    "system": [],
    "user": [],
    "assistant": [_USER],
    "tool": [_USER, {"role": "assistant", "content": "x", "tool_calls": [_CALL]}],
}
# Some templates print a string only, some walk over parts, and some print the first part only.
_PROBES: dict[str, Any] = {
    "string": PROBE,
    "part": [{"type": "text", "text": PROBE}],
    "parts": [{"type": "text", "text": PROBE}] * 2,
}
MAX_REASON_LEN = 200

# What transformers and Jinja itself provide to every template.
_GLOBALS = {"raise_exception", "strftime_now", "dict", "namespace", "range", "lipsum", "cycler", "joiner"}

_MARKUP = re.compile(r"[<\[]\S+[>\]]")  # <|fim_prefix|>, <tool_call>, [INST]: tokens even where not "special"


class ChatTemplate:
    """``tokenizer`` is a transformers tokenizer; ``source`` the text of the template."""

    def __init__(self, tokenizer: Any, source: str, picture_tokens: Sequence[str] = ()) -> None:
        self._tokenizer, self._source = tokenizer, source
        self._reserved = _reserved_arguments(tokenizer.apply_chat_template)
        tree = _parsed(source)
        self.variables = frozenset(find_undeclared_variables(tree) - _GLOBALS)
        self._looked_up = _looked_up(tree)
        given = {"messages", "tools", "documents", *self._reserved, *tokenizer.special_tokens_map}
        self.arguments = self.variables - given
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(picture_tokens)
        named = set(tokenizer.chat_control_tokens or ())
        others = {
            content
            for content in (token.content for token in added)
            if content in named or _MARKUP.fullmatch(content) or (content in source and not content.isspace())
        }
        self.tokens = TokenSet(special | others)
        # An assistant's text was once written by the model. Its <think> was a token and stays one: otherwise
        # templates that cut it out, and cached prefixes, would see a different text.
        self._assistant_tokens = TokenSet(special)
        self._takes = {
            (role, kind): self._probe(role, content) for role in _BEFORE for kind, content in _PROBES.items()
        }

    def render(
        self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool, template_kwargs: dict[str, Any]
    ) -> tuple[str, list[Range]]:
        """Return the chat as text, and its ranges in which control tokens are users' text."""
        if not messages:
            raise PromptError("there are no messages; send at least one")
        if reserved := self._reserved & template_kwargs.keys():
            raise PromptError(f"{sorted(reserved)} cannot be passed to a chat template; remove them")
        try:
            chat = [self._as_dict(message) for message in messages]
            marks = Marks(chat, template_kwargs, self._source, looked_up=self._looked_up)
            for message in chat:
                for name, value in message.items():
                    is_text = message["role"] == "assistant" and name != "tool_calls"
                    tokens = self._assistant_tokens if is_text else self.tokens
                    if name != "role" or value not in ROLES:
                        message[name] = marks.mark(value, tokens)
            given = {name: marks.mark(value, self.tokens) for name, value in template_kwargs.items()}
        except RecursionError:
            raise PromptError("the arguments of a tool call are nested too deeply") from None
        rendered = self._render(chat, add_generation_prompt=add_generation_prompt, **given)
        # A model may have written half of an escaped surrogate pair in its arguments; no tokenizer takes it.
        return marks.read(rendered.encode("utf-8", "replace").decode())

    def _render(self, chat: list[dict[str, Any]], **kwargs: Any) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                chat, chat_template=self._source, tokenize=False, **kwargs
            )
        except TemplateError as error:
            # What templates raise on purpose ("roles must alternate") is meant for the user.
            reason = str(error)[:MAX_REASON_LEN] if type(error) is TemplateError else "they do not fit"
            raise PromptError(f"the model's chat template rejects these messages: {reason}") from error
        except Exception as error:
            raise PromptError("the model's chat template cannot render these messages") from error
        assert isinstance(text, str)
        return text

    def _probe(self, role: str, content: str | list[Any]) -> bool:
        """Return whether the whole content of such a message is printed, and not as a Python list."""
        probe: dict[str, Any] = {"role": role, "content": content}
        if role == "tool":
            probe["tool_call_id"] = _CALL["id"]
        chat = [*_BEFORE[role], probe, *([_USER] if role == "system" else ())]
        try:
            text = self._render(chat, add_generation_prompt=False)
        except PromptError:
            return False
        wanted = 1 if isinstance(content, str) else len(content)
        return text.count(PROBE) == wanted and f"'{PROBE}'" not in text and f'"{PROBE}"' not in text

    def _as_dict(self, message: ChatMessage) -> dict[str, Any]:
        entry = {name: value for name, value in message.extra.items() if value is not None}
        if isinstance(calls := entry.get("tool_calls"), list):
            entry["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        entry["role"] = message.role
        if message.content is not None:
            entry["content"] = self._content(message)
        return entry

    def _content(self, message: ChatMessage) -> str | list[dict[str, str]]:
        role = message.role if (message.role, "parts") in self._takes else "user"
        takes_string, takes_parts = self._takes[role, "string"], self._takes[role, "parts"]
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        if len(texts) < len(message.parts) and not takes_parts:
            raise PromptError(f"the model's chat template takes no images in {message.role} messages")
        if takes_parts and not (isinstance(message.content, str) and takes_string):
            return [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                for part in message.parts
            ]
        text = message.content if isinstance(message.content, str) else "\n".join(texts)
        one_part = not takes_string and self._takes[role, "part"]
        return [{"type": "text", "text": text}] if one_part else text


def _with_parsed_arguments(call: Any) -> Any:
    """Parse the arguments of a call, which the OpenAI API sends as JSON text; templates want the object."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (KeyError, TypeError, ValueError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _parsed(source: str) -> nodes.Template:
    """Raises ``ValueError`` if the template is invalid."""
    # transformers' own tags around an assistant's text, which Jinja does not know.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    try:
        return Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(plain)
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is invalid, line {error.lineno}: {error.message}") from None


def _looked_up(tree: nodes.Template) -> frozenset[str]:
    """Return the identifiers by which a template may look up fields."""
    names = {node.attr for node in tree.find_all(nodes.Getattr)}
    for node in tree.find_all(nodes.Const):
        if isinstance(node.value, str):
            names.update(node.value.split("."))  # map(attribute="function.name")
    return frozenset(filter(str.isidentifier, names))


def _reserved_arguments(render: Callable[..., Any]) -> frozenset[str]:
    """Return names that would control the rendering itself instead of reaching the template."""
    named = {p.name for p in inspect.signature(render).parameters.values() if p.kind is not p.VAR_KEYWORD}
    return frozenset(named - {"tools", "documents"})
