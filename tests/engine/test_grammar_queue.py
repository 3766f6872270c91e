"""Requests that wait for their grammars."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
from llguidance import LLTokenizer

from engine.grammar.grammar import GrammarCompiler, GrammarError, GrammarState
from engine.grammar.queue import GrammarQueue
from engine.messages import GenerateRequest, SamplingParams
from processing.prompt import Prompt
from tests.engine.test_grammar import ll_tokenizer


class Caller:
    """Whoever takes from the queue: its frame must not outlive the call."""

    def take(self, queue: GrammarQueue) -> list[str]:
        while not (taken := queue.take(idle=True)):
            pass
        assert all(isinstance(grammar, Exception) for _, grammar in taken)
        return [request.request_id for request, _ in taken]


def asking(name: str, grammar: str) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=1, grammar=grammar)
    return GenerateRequest(request_id=name, prompt=Prompt(token_ids=[1]), sampling=sampling)


def unusable(message: str) -> Callable[[], LLTokenizer]:
    def load() -> LLTokenizer:
        raise GrammarError(message)

    return load


def broken() -> LLTokenizer:
    raise RuntimeError("no tokenizer")


@pytest.mark.parametrize("load", [unusable("it cannot be"), broken], ids=["refused", "failed"])
def test_a_grammar_that_is_refused_again_and_again_keeps_nobody(load: Callable[[], LLTokenizer]) -> None:
    """The error is kept with the grammar; with each raise of it, it would keep one more stack of frames."""
    queue = GrammarQueue(GrammarCompiler(load))
    callers = []
    for number in range(5):
        queue.put(asking(str(number), "start: /a/"))
        caller = Caller()
        assert caller.take(queue) == [str(number)]
        callers.append(weakref.ref(caller))
        del caller
    gc.collect()
    assert [caller() for caller in callers] == [None] * 5


@pytest.mark.parametrize("error", [MemoryError(), OSError("no more files"), RuntimeError("no new thread")])
def test_a_grammar_that_failed_for_a_passing_reason_is_compiled_again(error: Exception) -> None:
    """It is not the client's fault, and no error of the grammar."""
    wrong = iter([error])

    def load() -> LLTokenizer:
        for one in wrong:
            raise one
        return ll_tokenizer()

    queue, outcomes = GrammarQueue(GrammarCompiler(load)), []
    for name in ("first", "second"):
        queue.put(asking(name, "start: /a/"))
        while not (taken := queue.take(idle=True)):
            pass
        outcomes.append(taken[0][1])
    assert outcomes[0] is error
    assert isinstance(outcomes[1], GrammarState)


def test_a_grammar_that_is_wrong_is_refused_from_the_cache() -> None:
    compiler = GrammarCompiler(ll_tokenizer)
    first = compiler.compile("start: )")
    assert isinstance(first.exception(10), GrammarError)
    assert compiler.compile("start: )") is first


def test_a_grammar_that_nobody_waits_for_any_more_is_not_compiled() -> None:
    """One thread compiles for all: requests that have gone must not hold it up."""
    loading, go_on = threading.Event(), threading.Event()

    def load() -> LLTokenizer:
        loading.set()
        assert go_on.wait(10)
        raise GrammarError("it cannot be")

    compiler = GrammarCompiler(load)
    queue = GrammarQueue(compiler)
    for name, grammar in {"first": "a", "gone": "b", "shared": "c", "sharing": "c"}.items():
        queue.put(asking(name, f"start: /{grammar}/"))
    assert loading.wait(10), "the first is at work"
    shared = compiler.compile("start: /c/")
    gone = compiler.compile("start: /b/")
    assert queue.remove(["gone", "shared"]) == ["gone", "shared"]
    assert gone.cancelled()
    assert not shared.cancelled(), "somebody waits for it"
    again = compiler.compile("start: /b/")
    assert again is not gone
    go_on.set()
    assert isinstance(again.exception(10), GrammarError)
