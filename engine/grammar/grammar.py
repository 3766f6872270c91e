"""Grammars that constrain the next token, as bit masks over the vocabulary. No torch.

A grammar is a text in the format of llguidance (Lark's syntax with embedded JSON schemas and regular
expressions). Its parser works on prefixes: after any tokens it tells which may follow, and it can roll back,
as draft trees require. Compiling a grammar and computing a mask take bounded time and memory (``LIMITS``);
grammars beyond these limits are refused.
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

# Below the library's defaults, but far above what real schemas need; tests/engine/test_grammar.py has hostile
# schemas.
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
    """The grammar cannot be used. The message is sent to the client."""


class Grammar:
    """A compiled grammar, shared by the requests that use it.

    Copies of a matcher, even deep ones, share the lexer's tables: once those are full, no copy can continue.
    Drafts therefore have a separately compiled matcher, so that they do not fill the tables of the answers.
    """

    def __init__(self, tokenizer: LLTokenizer, text: str) -> None:
        """Compile ``text``: takes milliseconds, up to two seconds for the largest, mostly without the GIL."""
        self._matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
        self._ahead = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
        self._vocab_size = tokenizer.vocab_size
        start = self.begin()
        mask = start.mask()  # fills most of the lexer's tables, which the copies share
        if start.error is not None:
            raise GrammarError(start.error)
        if not start.allows_besides(mask, tokenizer.eos_tokens):
            raise GrammarError("nothing but an empty answer would satisfy it")
        self._first_id = int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax())

    @property
    def is_spent(self) -> bool:
        """Whether the tables are full. The only sign is that a token that was allowed no longer is."""
        return not all(matcher.validate_tokens([self._first_id]) for matcher in (self._matcher, self._ahead))

    def begin(self) -> GrammarState:
        """Return the initial state for another answer."""
        return GrammarState(self._matcher.deep_copy(), self._ahead.deep_copy(), self._vocab_size)


class GrammarState:
    """The state of a grammar after the output of one request so far.

    ``error``: why it cannot continue, or ``None``. ``ahead``: the matcher for drafts; once it fails, the
    answer continues without drafts. ``vocab_size``: that of the matchers' tokenizer.
    """

    def __init__(self, matcher: LLMatcher, ahead: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._ahead = ahead
        self._vocab_size = vocab_size
        self._num_words = (vocab_size + 31) // 32
        self._masks: dict[tuple[int, ...], Mask] = {}
        self.error = reason_of(matcher)

    @property
    def is_through(self) -> bool:
        """Whether the grammar is complete: only the end may follow, or it has been reached."""
        return self.error is None and self._matcher.is_stopped()

    def consume(self, token_id: int) -> None:
        """Advance by one token of output."""
        self._masks.clear()
        self._ahead.consume_token(token_id)
        self._matcher.consume_token(token_id)
        self.error = self.error or reason_of(self._matcher)

    def mask(self, path: Seq[int] = ()) -> Mask:
        """Return the tokens that may follow the output and ``path``, which the grammar must allow.

        After an error all tokens are forbidden.
        """
        key = tuple(path)
        if key not in self._masks:
            filled = None if self.error is not None else self._fill(self._matcher, key)
            if filled is None:
                self.error = self.error or reason_of(self._matcher) or "its patterns are too complex"
                return np.zeros(self._num_words, np.int32)
            self._masks[key] = filled
        return self._masks[key]

    def look_ahead(self, path: Seq[int]) -> None:
        """Compute a mask in advance that may be needed later."""
        key = tuple(path)
        if key not in self._masks and (filled := self._fill(self._ahead, key)) is not None:
            self._masks[key] = filled

    def allowed(self, token_ids: Seq[int], parents: Seq[int]) -> list[bool]:
        """Return which nodes of a tree may follow the output along their path.

        ``parents``: parent indices, each before its children; -1 is the root.
        """
        children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            children.setdefault(parent, []).append(node)
        allowed = [False] * len(token_ids)

        def visit(parent: int) -> None:
            for node in children.get(parent, ()):
                # The model may have more rows than the tokenizer has tokens; those would break the matcher.
                known = token_ids[node] < self._vocab_size
                if known and self._ahead.try_consume_tokens([token_ids[node]]):
                    allowed[node] = True
                    visit(node)
                    self._ahead.rollback(1)

        if self.error is None:
            visit(-1)
        return allowed

    @staticmethod
    def allows_besides(mask: Mask, token_ids: Seq[int] | frozenset[int]) -> bool:
        """Whether ``mask`` allows any token other than these."""
        left = mask.view(np.uint32).copy()
        for token_id in token_ids:
            if token_id // 32 < len(left):
                left[token_id // 32] &= ~np.uint32(1 << token_id % 32)
        return bool(left.any())

    def _fill(self, matcher: LLMatcher, path: tuple[int, ...]) -> Mask | None:
        """Return the mask after ``path``, or ``None`` if ``matcher`` failed.

        With full tables, a matcher accepts no token but does not report an error.
        """
        mask = np.zeros(self._num_words, np.int32)
        num_taken = matcher.try_consume_tokens(list(path))
        if num_taken == len(path):
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        matcher.rollback(num_taken)
        return None if num_taken < len(path) or matcher.is_error() else mask


class GrammarCompiler:
    """Compiles grammars in a separate thread, one at a time, and caches the last few.

    The tokenizer is loaded with the first grammar, so that there is no cost without grammars. Loading it
    holds the GIL once, for a quarter of a second with 49k tokens.
    """

    def __init__(self, load_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._tokenizer = cache(load_tokenizer)  # called only in that thread
        self._compiled: OrderedDict[str, Future[Grammar]] = OrderedDict()

    def compile(self, text: str) -> Future[Grammar]:
        """Return a future of the grammar. Not thread-safe.

        Its exception is a ``GrammarError``, or else a failure that may pass, such as of memory: asked again,
        it is compiled again.
        """
        known = self._compiled.get(text)
        if known is None or known.cancelled() or _is_useless(known):
            self._compiled[text] = self._thread.submit(self._compile, text)
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return self._compiled[text]

    def _compile(self, text: str) -> Grammar:
        return Grammar(self._tokenizer(), text)


def _is_useless(known: Future[Grammar]) -> bool:
    if not known.done():
        return False
    error = known.exception()
    return known.result().is_spent if error is None else not isinstance(error, GrammarError)


def reason_of(matcher: LLMatcher) -> str | None:
    """Return in one line why ``matcher`` failed; of the grammar it mentions only the name of the rule."""
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
