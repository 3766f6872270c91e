"""Splits the text of a model into content and function calls while it is generated.

What is not a call stays text: markers that no JSON follows, objects that do not name a function. Arguments
are passed on as they are written, character for character; their validity is up to the grammar. The result
does not depend on how the text was cut into pieces. Reading takes time in proportion to the text: what is
looked at again with every piece has at most ``MAX_HELD`` characters.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from processing.tools.braces import Braces
from processing.tools.styles import ToolStyle

FUNCTION_KEYS: Final = ("name", "arguments", "parameters", "id", "type")

MAX_HELD: Final = 1024
"""Characters that wait until it is clear what they are: white space that is left out if a call follows, and
the beginning of what may be a call. No call needs as many, so more of them are text.
"""

# How most calls begin, up to their arguments, so that those can be passed on while they are written …
_NAME_FIRST = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,256})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_NAME_SO_FAR = re.compile(
    r'\s*\{\s*"name"\s*(?::\s*(?:"[^"\\]{0,256}(?:"\s*(?:,\s*(?:"[a-z]{0,10}(?:"\s*(?::\s*)?)?)?)?)?)?)?'
)
# … what shows that an object is not a call, by its first key or the lack of one …
_NO_OBJECT = re.compile(r'\s*(?:[^\s{]|\{\s*[^\s"])')
_FIRST_KEY = re.compile(r'\s*\{\s*"([^"\\]*)["\\]')
# … and calls that are not objects.
_BARE = re.compile(r"\s*([\w.:/-]{1,256})(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_BARE_SO_FAR = re.compile(r"\s*[\w.:/-]{0,256}(?:\[[A-Z_]*(?:\]\w*)?){0,2}\s*")


@dataclass(slots=True)
class CallDelta:
    """An addition to call ``index``. ``id`` and ``name`` come only with the first."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Read:
    """Content, and the additions to calls after it."""

    text: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class CallReader:
    """``names``: functions that may be called. If calls have no marker, only these names make a call."""

    def __init__(self, style: ToolStyle, names: Collection[str]) -> None:
        self._style = style
        self._names = names
        self._unread = ""
        self._space = self._marker = ""  # already read; become text again if no call follows
        self._object: list[str] = []  # likewise, the parts of an object
        self._braces = Braces()
        self._read = Read()
        marks = {style.begin, style.closing.strip(), *style.separator.split(), *style.also} - {""}
        self._marks = sorted(marks, key=len, reverse=True)  # longer ones first, as they may begin alike
        self._step: Callable[[], bool] = self._text if style.begin else self._between
        self.num_calls = 0

    def feed(self, text: str) -> Read:
        """Return what ``text`` adds. White space is held back, and left out if a call follows."""
        for at in range(0, len(text), MAX_HELD):  # as each step copies what is unread
            self._unread += text[at : at + MAX_HELD]
            while self._unread and self._step():
                pass
        return self._taken()

    def finish(self) -> Read:
        """Return what was held back, as the text has ended."""
        if self._step in (self._head, self._whole):
            self._read.text += self._space + self._marker + "".join(self._object) + self._unread
        elif self._step == self._text or not self.num_calls:
            self._read.text += self._unread
        return self._taken()

    def _taken(self) -> Read:
        read, self._read = self._read, Read()
        return read

    @property
    def is_cut(self) -> bool:
        """Whether the text so far ends in the middle of a call."""
        return self._step in (self._head, self._whole, self._arguments)

    # Each step consumes some of ``_unread``; it returns whether another step may follow immediately.

    def _text(self) -> bool:
        begin = self._style.begin
        at = self._unread.find(begin) if begin else -1
        if at >= 0:
            shown = _stripped(self._unread[:at])
            self._read.text += shown
            self._expect_call(begin, self._unread[len(shown) : at])
            self._unread = self._unread[at + len(begin) :]
            return True
        held = max((n for n in range(len(begin)) if self._unread.endswith(begin[:n])), default=0)
        shown = _stripped(self._unread[: len(self._unread) - held]) if begin else self._unread
        self._read.text += shown
        self._unread = self._unread[len(shown) :]
        return False

    def _between(self) -> bool:
        """After a call, or at the start if calls have no marker: another call, or text."""
        rest = self._unread.lstrip()
        if self.num_calls:
            self._unread = rest
        elif len(self._unread) - len(rest) > MAX_HELD:
            self._step = self._text
            return True
        marks = self._marks if self.num_calls else self._style.also  # at the start ";" separates nothing
        mark = next((mark for mark in marks if rest.startswith(mark)), None)
        if mark is not None:
            if mark == self._style.begin or not self.num_calls:
                self._expect_call(mark, self._unread[: len(self._unread) - len(rest)])
            self._unread = rest[len(mark) :]
        elif not rest or any(mark.startswith(rest) for mark in marks):
            return False
        elif rest[0] == "{" and self._style.wraps:
            self._expect_call("")
        else:
            self._step = self._text
        return True

    def _expect_call(self, marker: str, space: str = "") -> None:
        self._space, self._marker, self._object, self._step = space, marker, [], self._head

    def _head(self) -> bool:
        """A function's name, up to its arguments."""
        opening = self._style.opening.strip()
        at = len(self._unread) - len(self._unread.lstrip())
        if opening and self._unread.startswith(opening, at) and len(self._marker) + at < MAX_HELD:
            self._marker += self._unread[: at + len(opening)]
            self._unread = self._unread[at + len(opening) :]
            return True
        match = (_NAME_FIRST if self._style.wraps else _BARE).match(self._unread, 0, MAX_HELD)
        if match is not None and self._is_known(match[1]):
            self._begin_call(match[1])
            self._unread = self._unread[match.end() :]
            self._braces, self._step = Braces(), self._arguments
            return True
        if match is not None:
            return self._give_up()
        may_wait = len(self._unread) < MAX_HELD
        if not self._style.wraps:
            return False if may_wait and _BARE_SO_FAR.fullmatch(self._unread) else self._give_up()
        if _NO_OBJECT.match(self._unread):
            return self._give_up()
        first = _FIRST_KEY.match(self._unread, 0, MAX_HELD)
        if first is None:
            return False if may_wait else self._give_up()
        if first[1] not in FUNCTION_KEYS:
            return self._give_up()
        if may_wait and _NAME_SO_FAR.fullmatch(self._unread):
            return False
        self._braces, self._step = Braces(), self._whole
        return True

    def _whole(self) -> bool:
        """An object whose parts are in another order: it is read once it is complete.

        If it is not a call, it is text with all that is in it: its parts are not read again.
        """
        end = self._braces.end(self._unread)
        part = self._unread if end is None else self._unread[:end]
        self._object.append(part)
        self._unread = self._unread[len(part) :]
        if end is None:
            return False
        text = "".join(self._object)
        name, arguments = _call_in(text)
        if name is None or not self._is_known(name):
            self._marker += text
            return self._give_up()
        self._begin_call(name)
        self._read.calls[-1].arguments = arguments
        self._step = self._between
        return True

    def _arguments(self) -> bool:
        end = self._braces.end(self._unread)
        part = self._unread if end is None else self._unread[:end]
        self._read.calls.append(CallDelta(self.num_calls - 1, part))
        self._unread = self._unread[len(part) :]
        if end is not None:
            self._braces, self._step = Braces(depth=1), self._tail if self._style.wraps else self._between
        return True

    def _tail(self) -> bool:
        """The rest of a call's object: an id, or nothing."""
        end = self._braces.end(self._unread)
        self._unread = "" if end is None else self._unread[end:]
        self._step = self._tail if end is None else self._between
        return True

    def _is_known(self, name: str) -> bool:
        return bool(self._style.begin) or name in self._names

    def _begin_call(self, name: str) -> None:
        call_id = secrets.token_hex(5)[:9] if self._style.short_ids else f"call_{secrets.token_hex(12)}"
        self._read.calls.append(CallDelta(self.num_calls, id=call_id, name=name))
        self.num_calls += 1

    def _give_up(self) -> bool:
        """It was not a call: the marker is text, and so is what follows up to another marker."""
        self._read.text += self._space + self._marker
        self._step = self._text
        return True


def _stripped(text: str) -> str:
    """Return a text without the white space at its end that is left out before a call."""
    return text[: max(len(text.rstrip()), len(text) - MAX_HELD)]


def _call_in(text: str) -> tuple[str | None, str]:
    """Return the name and arguments of a call that is a JSON object. The name is ``None`` if it is not one or
    cannot be sent as JSON: Python reads numbers that JSON does not have, and halves of surrogate pairs.
    """
    try:
        call: Any = json.loads(text)
        name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
        told = arguments
        if not isinstance(arguments, str):
            told = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None, ""
    is_named = isinstance(name, str) and name.isprintable()
    return (name, told.encode(errors="backslashreplace").decode()) if is_named else (None, "")
