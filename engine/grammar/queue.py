"""Holds requests while their grammars are compiled, so that the step loop continues. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from engine.grammar.grammar import Grammar, GrammarCompiler, GrammarError, GrammarState
from engine.messages import GenerateRequest

IDLE_SECONDS = 0.01
"""How long an otherwise idle engine waits for a grammar before it looks for new messages."""

log = logging.getLogger(__name__)


class GrammarQueue:
    """Requests with grammars, released in order of arrival as far as compilation allows."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[GenerateRequest, Future[Grammar]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: GenerateRequest) -> None:
        assert request.sampling.grammar is not None
        self._waiting[request.request_id] = request, self._compiler.compile(request.sampling.grammar)

    def remove(self, request_ids: Iterable[str]) -> list[str]:
        """Remove those of the requests that are in the queue, and return them.

        Compilations that have not started and that no other request needs are cancelled.
        """
        gone = {name: self._waiting.pop(name)[1] for name in request_ids if name in self._waiting}
        for future in set(gone.values()).difference(future for _, future in self._waiting.values()):
            future.cancel()  # has no effect on one that is already running
        return list(gone)

    def take(self, *, idle: bool) -> list[tuple[GenerateRequest, GrammarState | BaseException]]:
        """Remove and return the requests that can start or have failed. If ``idle``, wait briefly for one.

        An error that is no ``GrammarError`` is not due to the grammar.
        """
        if idle and self._waiting:
            wait([future for _, future in self._waiting.values()], IDLE_SECONDS, FIRST_COMPLETED)
        done = [name for name, (_, future) in self._waiting.items() if future.done()]
        return [(request, _outcome(future)) for request, future in map(self._waiting.pop, done)]


def _outcome(future: Future[Grammar]) -> GrammarState | BaseException:
    """Return the state of a compiled grammar, or its error.

    The error is not raised: it is cached with the grammar for other requests, and each raise would add the
    current frames, and everything that they keep alive, to its traceback.
    """
    error = future.exception()
    if error is None:
        return future.result().begin()
    if not isinstance(error, GrammarError):
        log.error("a grammar could not be compiled", exc_info=error)
    return error
