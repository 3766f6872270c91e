"""Grammars: which tokens may come next, as one bit for each token of the vocabulary. No torch.

A grammar is a text in the language of llguidance (Lark's syntax with JSON schemas and regular expressions in
it). Its parser works on prefixes: after any tokens it says which may follow, and it can go back, which is
what a tree of drafts needs. Whatever a grammar asks for, compiling it and every mask cost a bounded time and
memory (``LIMITS``); beyond them it is refused.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

Mask = npt.NDArray[np.int32]
"""``[words]``: bit ``i % 32`` of word ``i // 32`` says whether token ``i`` may come next."""

MAX_GRAMMAR_CHARS = 1 << 18
MAX_CACHED = 64
MAX_REASON_LEN = 300

# Below the library's own, far above what real schemas need; tests/engine/test_grammar.py has hostile ones.
LIMITS = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=10_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


class GrammarError(ValueError):
    """The grammar cannot be used. The message is for the client."""


class Grammar:
    """A compiled grammar, shared by the requests that ask for it."""

    def __init__(self, tokenizer: LLTokenizer, text: str) -> None:
        """Takes milliseconds, or up to a second for the largest, most of it without Python's lock."""
        self._matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
        self._num_words = (tokenizer.vocab_size + 31) // 32
        start = self.begin()
        mask = start.mask()  # fills most of the lexer's tables, which the copies share
        if start.error is not None:
            raise GrammarError(start.error)
        if not start.allows_besides(mask, tokenizer.eos_tokens):
            raise GrammarError("nothing but an empty answer would satisfy it")

    def begin(self) -> GrammarState:
        """For one more answer."""
        return GrammarState(self._matcher.deep_copy(), self._num_words)


class GrammarState:
    """A grammar after the output of one request so far. ``error``: why it cannot go on any more, if so."""

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._num_words = num_words
        self._masks: dict[tuple[int, ...], Mask] = {}
        self.error = reason_of(matcher)

    def consume(self, token_id: int) -> None:
        """Go on by one token of output."""
        self._masks.clear()
        self._matcher.consume_token(token_id)
        self.error = self.error or reason_of(self._matcher)

    def mask(self, path: Seq[int] = ()) -> Mask:
        """What may follow the output and ``path``, which the grammar allows. All forbidden after an error."""
        key = tuple(path)
        if key not in self._masks:
            self._masks[key] = self._fill(key)
        return self._masks[key]

    def allowed(self, token_ids: Seq[int], parents: Seq[int]) -> list[bool]:
        """Which nodes of a tree may follow the output along their path. ``parents`` come before their
        children, -1 is the root.
        """
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        allowed = [False] * len(token_ids)

        def visit(parent: int) -> None:
            for node in children.get(parent, ()):
                if self._matcher.try_consume_tokens([token_ids[node]]):
                    allowed[node] = True
                    visit(node)
                    self._matcher.rollback(1)

        if self.error is None:
            visit(-1)
        return allowed

    @staticmethod
    def allows_besides(mask: Mask, token_ids: Seq[int] | frozenset[int]) -> bool:
        """Whether ``mask`` allows any token but these."""
        left = mask.view(np.uint32).copy()
        for token_id in token_ids:
            if token_id // 32 < len(left):
                left[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return bool(left.any())

    def _fill(self, path: tuple[int, ...]) -> Mask:
        mask = np.zeros(self._num_words, np.int32)
        if self.error is not None:
            return mask
        num_taken = self._matcher.try_consume_tokens(list(path))
        assert num_taken == len(path), "a path that the grammar does not allow"
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self.error = reason_of(self._matcher)
        if self.error is not None:
            return np.zeros_like(mask)
        self._matcher.rollback(num_taken)
        return mask


class GrammarCompiler:
    """Compiles in a thread of its own, one at a time, and keeps the last few.

    The tokenizer is loaded for the first grammar: who never asks for one pays nothing. Loading holds
    Python's lock once, for a quarter of a second with 49k tokens.
    """

    def __init__(self, load_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._tokenizer = cache(load_tokenizer)  # by that thread alone
        self._compiled: OrderedDict[str, Future[Grammar]] = OrderedDict()

    def compile(self, text: str) -> Future[Grammar]:
        """A future whose exception is a ``GrammarError``. Called by one thread."""
        known = self._compiled.get(text)
        if known is None or known.cancelled():
            self._compiled[text] = self._thread.submit(self._compile, text)
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return self._compiled[text]

    def _compile(self, text: str) -> Grammar:
        return Grammar(self._tokenizer(), text)


def reason_of(matcher: LLMatcher) -> str | None:
    """Why ``matcher`` gave up, in one line: of the grammar itself only the name of the rule."""
    if not matcher.is_error():
        return None
    error = matcher.get_error()
    if error.startswith("NoExtension"):
        return "nothing satisfies it"
    error = re.sub(r"; either increase limits\..*", ": its patterns are too complex", error)
    at = re.match(r"at (\d+)\(\d+\): ", error)
    rule = at and re.search(rf"^ *{at[1]} \| (\w+)\b.*:", error, re.MULTILINE)
    place = f"in '{rule[1]}': " if rule else ""
    told, *_ = re.split(r"\n *\d+ \| ", error.removeprefix(at[0] if at else "").replace("<non-verbose/>", ""))
    return (place + " ".join(told.split()))[:MAX_REASON_LEN]
