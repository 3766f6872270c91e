"""Function calls in the OpenAI format, whole and in deltas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from processing.tools.reader import CallDelta
from server.schemas.answers import DeltaFunction, DeltaToolCall, FunctionCall, ToolCall


def delta_calls(gains: Sequence[CallDelta]) -> list[DeltaToolCall] | None:
    """Return one delta per call in ``gains``, ``None`` if there are none."""
    deltas = []
    for index, gained in groupby(gains, lambda gain: gain.index):
        first, *more = gained
        arguments = first.arguments + "".join(gain.arguments for gain in more)
        deltas.append(
            DeltaToolCall(
                index=index,
                id=first.id,
                type=None if first.id is None else "function",
                function=DeltaFunction(name=first.name, arguments=arguments),
            )
        )
    return deltas or None


def joined_calls(gains: Iterable[CallDelta]) -> list[ToolCall] | None:
    """Join ``gains``, in their order, into whole calls; ``None`` if there are none."""
    names: list[tuple[str, str]] = []
    arguments: list[str] = []
    for gain in gains:
        if gain.id is not None and gain.name is not None:
            names.append((gain.id, gain.name))
            arguments.append("")
        arguments[gain.index] += gain.arguments
    return [
        ToolCall(id=call_id, function=FunctionCall(name=name, arguments=text))
        for (call_id, name), text in zip(names, arguments, strict=True)
    ] or None
