"""The engine process. Started by ``engine.ipc.process``, which speaks to it over stdin and two sockets."""

from __future__ import annotations

import sys

from engine.config import EngineConfig
from engine.core_protocol import Core
from engine.host.garbage import collecting_later
from engine.ipc.worker import main


def load(config: EngineConfig) -> Core:
    # Imported here: torch takes seconds, and until then nothing would notice that the parent is gone.
    with collecting_later():
        from transformers.utils.logging import disable_progress_bar

        from engine.core import EngineCore

        disable_progress_bar()  # no line of a log, and an error where nobody reads stderr any more
        return EngineCore.load(config)


if __name__ == "__main__":
    sys.exit(main(load))
