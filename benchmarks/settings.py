"""What all measurements of one run share; travels to their processes as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """``num_tokens``: output tokens of one run. ``seed``: of pictures and prompts."""

    model: str
    threads: int = 2
    repeats: int = 5
    num_tokens: int = 64
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_measurement(measure: Callable[[Settings], dict[str, Any]]) -> None:
    """Entry of one measurement's process: settings as JSON in ``argv``, its result as JSON on stdout."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = Settings(**json.loads(sys.argv[1]))
    print(json.dumps(measure(settings)))
