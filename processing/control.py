"""Keeps special tokens in users' text from being parsed as such.

A rendered chat has control tokens (``<|im_end|>``, ``<image>``) that the template wrote, and maybe the same
characters from a user. Users' characters that are part of such a token, or could become part of one next to
other text ("<ima" followed by "ge>"), are wrapped in two marks before rendering; afterwards, the marks tell
who wrote the token. Everything else renders and tokenizes as if none of this existed. (transformers' own
``sanitize_control_tokens`` marks whole tokens only, drops users' private-use characters, does not know its
marks again where a template prints data as Python does, and temporarily changes the state of the shared
tokenizer, which is not thread-safe.)

Knows strings and the ``tokenizers`` library; no chats, no pictures.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from tokenizers import AddedToken, Tokenizer

from processing.errors import PromptError

Range = tuple[int, int]

# Supplementary private-use planes: characters without a public meaning.
_PRIVATE_USE = chain(range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_MARK_CANDIDATES = "".join(map(chr, _PRIVATE_USE))
# One of them as Python's repr and JSON in ASCII write it. What is escaped twice ends in the same way.
_ESCAPED = re.compile(r"\\U(000f[0-9a-f]{4}|0010[0-9a-f]{4})|\\u(db[89a-f][0-9a-f])\\+u(d[c-f][0-9a-f]{2})")


class TokenSet:
    """A set of control tokens, which finds the parts of a text that could belong to one."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = tuple(sorted(set(tokens), key=lambda token: (-len(token), token)))
        self.pattern = re.compile(_any_of(self.tokens) or "(?!)")
        self._starts = {token[:n] for token in self.tokens for n in range(1, len(token))}
        self._ends = {token[n:] for token in self.tokens for n in range(1, len(token))}
        self._longest = max(map(len, self.tokens), default=0)
        self._joined = "\0".join(self.tokens)

    def exposed(self, text: str) -> list[Range]:
        """Return ranges of ``text`` that are control tokens, or that adjacent text could complete to one.

        Templates trim, so the first and last characters are checked with and without white space.
        """
        ranges = [match.span() for match in self.pattern.finditer(text)]  # in order, so sorting is fast
        left, right = len(text) - len(text.lstrip()), len(text.rstrip())
        for at, rest in ((0, text), (left, text[left:right])):
            if rest and (self._begins_as_an_end(rest) or self._is_inside(rest)):
                ranges.append((at, at + 1))
        for at, rest in ((len(text), text), (right, text[:right])):
            if any(rest[-length:] in self._starts for length in range(1, self._longest)):
                ranges.append((at - 1, at))
        return _merged(ranges)

    # A vocabulary may have thousands of control tokens, and a chat thousands of short texts: nothing here may
    # try one token after the other.

    def _begins_as_an_end(self, text: str) -> bool:
        return any(text[:length] in self._ends for length in range(1, self._longest))

    def _is_inside(self, text: str) -> bool:
        return len(text) <= self._longest and "\0" not in text and text in self._joined


def _any_of(tokens: Iterable[str]) -> str:
    """Return a pattern that matches any of ``tokens``, the longest first.

    Common prefixes are factored out: a vocabulary may reserve thousands of ``<unused…>`` tokens, and a plain
    alternation would try all of them at each ``<`` of a text.
    """
    root: dict[str, Any] = {}
    for token in tokens:
        node = root
        for char in token:
            node = node.setdefault(char, {})
        node[""] = {}  # a token ends here
    return _pattern_of(root)


def _pattern_of(node: dict[str, Any]) -> str:
    common = ""
    while len(node) == 1 and "" not in node:  # a loop, as a token may be longer than Python recurses
        [(char, node)] = node.items()
        common += re.escape(char)
    branches = [re.escape(char) + _pattern_of(rest) for char, rest in node.items() if char]
    if not branches:
        return common
    return f"{common}(?:{'|'.join(branches)})" + ("?" if "" in node else "")


def _merged(ranges: Iterable[Range]) -> list[Range]:
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


class Marks:
    """Two characters that occur nowhere in a chat, so that they cannot be forged and nothing is lost.

    ``looked_up``: names by which the template looks up fields.
    """

    def __init__(self, *data: object, looked_up: Container[str] = ()) -> None:
        texts = list(strings_in(data))
        used: set[str] = set().union(*texts, *map(_escaped_in, texts))
        # From a random place: a template may join two texts, each with half an escape of a known mark.
        start, count = secrets.randbelow(len(_MARK_CANDIDATES)), len(_MARK_CANDIDATES)
        candidates = (_MARK_CANDIDATES[(start + n) % count] for n in range(count))
        free = list(islice((char for char in candidates if char not in used), 2))
        if len(free) < 2:
            raise PromptError("the messages use all private-use characters of Unicode; leave some out")
        self._open, self._close = free
        self._pattern = re.compile(f"({_spellings(self._open)})|{_spellings(self._close)}")
        self._looked_up = looked_up

    def mark(self, value: Any, tokens: TokenSet) -> Any:
        """Return a copy of plain data with the users' exposed characters wrapped."""
        if isinstance(value, str):
            return self._wrap(value, tokens)
        if isinstance(value, dict):
            return {self._mark_name(k, tokens): self._mark_item(k, v, tokens) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item, tokens) for item in value]
        return value

    def read(self, rendered: str) -> tuple[str, list[Range]]:
        """Return the text without marks, and its ranges that users wrote and that no token may touch.

        Templates may print data as Python or JSON, where marks are escaped, and cut a string between its
        marks. A lone mark becomes an empty range: no token may reach across it, and the template's own text
        stays its own.
        """
        pieces: list[str] = []
        ranges: list[Range] = []
        length = last = 0
        opened = False
        for match in self._pattern.finditer(rendered):
            pieces.append(rendered[last : match.start()])
            length, last = length + len(pieces[-1]), match.end()
            opens = match[1] is not None
            if opened and not opens:
                ranges[-1] = (ranges[-1][0], length)
            else:
                ranges.append((length, length))
            opened = opens
        return "".join([*pieces, rendered[last:]]), ranges

    def _wrap(self, text: str, tokens: TokenSet) -> str:
        pieces: list[str] = []
        last = 0
        for start, end in tokens.exposed(text):
            pieces += (text[last:start], self._open, text[start:end], self._close)
            last = end
        return "".join([*pieces, text[last:]])

    def _mark_name(self, name: Any, tokens: TokenSet) -> Any:
        # Templates look up fields by name. They print other names, some between "<" and ">".
        return self._wrap(name, tokens) if isinstance(name, str) and name not in self._looked_up else name

    def _mark_item(self, name: Any, value: Any, tokens: TokenSet) -> Any:
        # Templates compare types ("function", "string") and do not build tokens from them.
        if name == "type" and isinstance(value, str) and value.isidentifier():
            return value
        if name == "required" and isinstance(value, list):  # templates look for names in it
            return [(self._mark_name if isinstance(one, str) else self.mark)(one, tokens) for one in value]
        return self.mark(value, tokens)


def _spellings(char: str) -> str:
    """Return a pattern for a character as it is, and as ``_ESCAPED`` finds it."""
    high, low = re.findall(r"[0-9a-f]{4}", json.dumps(char))
    return rf"{char}|\\U{ord(char):08x}|\\u{high}\\+u{low}"


def _escaped_in(text: str) -> set[str]:
    """Return the characters that a text spells as ``_ESCAPED`` finds them."""
    codes = (
        int(code, 16) if code else 0x10000 + (int(high, 16) % 0x400 << 10) + int(low, 16) % 0x400
        for code, high, low in _ESCAPED.findall(text)
    )
    return {chr(code) for code in codes}


def strings_in(value: object) -> Iterator[str]:
    """Yield every string in plain data, including the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from strings_in(name)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a chat: one control token (``trusted``), or the text between two of them.

    ``exposed``: parsing special tokens here would find one that a user wrote.
    """

    text: str
    trusted: bool = False
    exposed: bool = False


def split_sections(text: str, tokens: TokenSet, ranges: Sequence[Range]) -> list[Section]:
    """Cut ``text`` at the control tokens that touch none of the users' ``ranges``."""
    ends = [end for _, end in ranges]
    sections: list[Section] = []
    exposed, last, position = False, 0, 0
    while match := tokens.pattern.search(text, position):
        start, end = match.span()
        nearest = bisect_right(ends, start)
        if nearest < len(ranges) and ranges[nearest][0] < end:
            exposed, position = True, start + 1
            continue
        sections += (Section(text[last:start], exposed=exposed), Section(match[0], trusted=True))
        exposed, last, position = False, end, end
    sections.append(Section(text[last:], exposed=exposed))
    return [section for section in sections if section.text]


class ControlTokenizer:
    """Encodes with and without parsing special tokens. Thread-safe: no state changes after construction."""

    def __init__(self, tokenizer: Tokenizer, tokens: TokenSet) -> None:
        self.tokens = tokens
        self._parsing = tokenizer
        ids = {tokenizer.token_to_id(token) for token in tokens.tokens}
        self._ids = frozenset(ids - {_unknown_id(tokenizer)})  # other characters become <unk> too
        # Represents "preceded by a control token" in the plain tokenizer; it cannot be guessed.
        self._lead = f"\U0010fffd{secrets.token_hex(16)}"
        self._plain, self._true_ids = self._build_plain()
        self.before, self.after = self._added_around()

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode ``text`` and parse special tokens in it: for prompts whose author wrote all of them."""
        return _ids(self._parsing, text, add_special_tokens)

    def encode_plain(self, text: str, add_special_tokens: bool) -> list[int]:
        """Encode ``text`` with special tokens as ordinary characters."""
        ids = self._encode_text(text, after_token=False)
        return [*self.before, *ids, *self.after] if add_special_tokens else ids

    def encode_sections(self, sections: Sequence[Section]) -> list[int]:
        """Return token ids in which exactly the control tokens of trusted sections are control tokens."""
        wanted = sum(len(self.tokens.pattern.findall(s.text)) for s in sections if s.trusted)
        some_exposed = any(section.exposed for section in sections)
        if not some_exposed:
            ids = self.encode("".join(section.text for section in sections), add_special_tokens=False)
            if self._num_control(ids) == wanted:
                return ids
        # Some section contains a token. If none is exposed, a normalizer made one from other characters.
        ids = self._encode_apart(sections, all_plain=not some_exposed)
        if self._num_control(ids) != wanted:
            raise PromptError("the text contains a special token that this tokenizer cannot keep as text")
        return ids

    def _encode_apart(self, sections: Sequence[Section], all_plain: bool) -> list[int]:
        ids: list[int] = []
        parsed = ""
        for index, section in enumerate(sections):
            if section.trusted or not (section.exposed or all_plain):
                parsed += section.text
                continue
            ids += self.encode(parsed, add_special_tokens=False)
            ids += self._encode_text(section.text, after_token=index > 0)
            parsed = ""
        return ids + self.encode(parsed, add_special_tokens=False)

    def _encode_text(self, text: str, after_token: bool) -> list[int]:
        # SentencePiece vocabularies treat the first word of a text differently from later ones.
        ids = _ids(self._plain, (self._lead if after_token else "") + text, add_special_tokens=False)
        return [self._true_ids.get(i, i) for i in ids[int(after_token) :]]

    def _num_control(self, ids: Iterable[int]) -> int:
        return sum(i in self._ids for i in ids)

    def _build_plain(self) -> tuple[Tokenizer, dict[int, int]]:
        """Return the same tokenizer without control tokens, and the true ids of the added tokens it keeps
        (words and runs of white space added to the vocabulary are not control tokens)."""
        spec = json.loads(self._parsing.to_str())
        kept = [token for token in spec["added_tokens"] if token["content"] not in self.tokens.tokens]
        lead = {"id": 0, "content": self._lead, "special": True, "normalized": False}
        lead |= {"single_word": False, "lstrip": False, "rstrip": False}
        plain = Tokenizer.from_str(json.dumps(spec | {"added_tokens": [], "post_processor": None}))
        fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        plain.add_tokens([AddedToken(**{name: token[name] for name in fields}) for token in [lead, *kept]])
        plain_ids = {token_id: token.content for token_id, token in plain.get_added_tokens_decoder().items()}
        true_ids = {token["content"]: token["id"] for token in kept}
        return plain, {i: true_ids[content] for i, content in plain_ids.items() if content in true_ids}

    def _added_around(self) -> tuple[list[int], list[int]]:
        """Return the ids that encoding with special tokens puts before and after a text (BOS, EOS)."""
        bare, full = self.encode("a", add_special_tokens=False), self.encode("a", add_special_tokens=True)
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:at], full[at + len(bare) :]


def _ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    # A batch of one: unlike ``encode``, it lets other threads run meanwhile, including the event loop's.
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_token") is not None:
        return tokenizer.token_to_id(model["unk_token"])
    unk_id: int | None = model.get("unk_id")
    return unk_id
