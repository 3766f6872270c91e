"""Requests whose grammars are being compiled: the step loop goes on without them. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.grammar.grammar import Grammar, GrammarCompiler, GrammarError, GrammarState
from engine.messages import GenerateRequest

IDLE_SECONDS = 0.01
"""How long an engine that has nothing else to do waits for a grammar before it hears new messages."""

log = logging.getLogger(__name__)


class GrammarQueue:
    """In the order of arrival, as far as compiling allows."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[GenerateRequest, Future[Grammar]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: GenerateRequest) -> None:
        assert request.sampling.grammar is not None
        self._waiting[request.request_id] = request, self._compiler.compile(request.sampling.grammar)

    def remove(self, request_ids: Iterable[str]) -> list[str]:
        """Forget those of the requests that wait here, and what is not compiled for anybody else yet; returns
        them.
        """
        gone = {name: self._waiting.pop(name)[1] for name in request_ids if name in self._waiting}
        for future in set(gone.values()).difference(future for _, future in self._waiting.values()):
            future.cancel()  # one that is at work goes on
        return list(gone)

    def take(self, *, idle: bool) -> list[tuple[GenerateRequest, GrammarState | GrammarError]]:
        """Those that can start, or never will. If ``idle``, waits a moment for the first."""
        if idle and self._waiting:
            wait([future for _, future in self._waiting.values()], IDLE_SECONDS, FIRST_COMPLETED)
        done = [name for name, (_, future) in self._waiting.items() if future.done()]
        return [(request, _outcome(future)) for request, future in map(self._waiting.pop, done)]


def _outcome(future: Future[Grammar]) -> GrammarState | GrammarError:
    """The error of a grammar is looked at, not raised: it is kept with the grammar for others who ask for it,
    and each raise would add the frames of that moment, and all that they hold, to its traceback.
    """
    error = future.exception()
    if error is None:
        return future.result().begin()
    if isinstance(error, GrammarError):
        return error
    log.error("a grammar could not be compiled", exc_info=error)
    return GrammarError("it could not be compiled")
