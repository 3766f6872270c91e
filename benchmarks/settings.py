"""Settings that all measurements of a run share; passed to their processes as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a run. ``num_tokens``: output tokens per request. ``seed``: for pictures and prompts."""

    model: str
    threads: int = 2
    repeats: int = 5
    num_tokens: int = 64
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_measurement(measure: Callable[[Settings], dict[str, Any]]) -> None:
    """Run one measurement in its own process: settings as JSON in ``argv``, the result as JSON on stdout."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = Settings(**json.loads(sys.argv[1]))
    print(json.dumps(measure(settings)))
