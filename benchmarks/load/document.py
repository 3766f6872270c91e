"""The JSON document of a run, during the run and at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.load.report import averages, warnings_of
from benchmarks.load.settings import BenchSettings
from benchmarks.load.targets import Target
from benchmarks.machine import busy_warning, load, machine

FORMAT = 1
"""Increased when a field of the document changes its meaning or is removed."""


class Document:
    """The document of a run. ``targets`` and ``points`` are filled during the run."""

    def __init__(self, settings: BenchSettings) -> None:
        self.targets: list[Target] = []
        self.points: list[dict[str, Any]] = []
        self._settings = settings
        self._machine = machine()
        self._before, self._started = load(), time.time()

    def so_far(self) -> dict[str, Any]:
        """Return the document as if the run ended now, without measuring the load, which takes a second."""
        return self._json(None)

    def finished(self) -> dict[str, Any]:
        return self._json(load())

    def _json(self, after: dict[str, Any] | None) -> dict[str, Any]:
        busy = busy_warning(self._before, after or self._before)
        return {
            "format": FORMAT,
            "incomplete": after is None,
            "argv": without_key(sys.argv[1:]),
            "started_unix": round(self._started),
            "seconds": round(time.time() - self._started, 1),
            "machine": self._machine,
            "load": {"before": self._before, "after": after},
            "warnings": warnings_of(self.targets, busy),
            "settings": self._settings.model_dump(mode="json", exclude={"api_key"}),
            "sides": [
                {"label": t.label, "url": t.url, "model": t.model, "fields": t.fields, "server": t.server}
                for t in self.targets
            ],
            "points": list(self.points),
            "averages": averages(self.points),
        }


def without_key(argv: Sequence[str]) -> list[str]:
    """Return the command line with the API key masked."""
    shown: list[str] = []
    for word in argv:
        if shown and shown[-1] == "--api-key":
            shown.append("…")
        else:
            shown.append("--api-key=…" if word.startswith("--api-key=") else word)
    return shown
