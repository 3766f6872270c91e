"""Entry point of the engine process, started by ``engine.ipc.process``; see ``engine.ipc.worker``."""

from __future__ import annotations

import sys

from engine.config import EngineConfig
from engine.core_protocol import Core
from engine.host.garbage import collecting_later
from engine.ipc.worker import main


def load(config: EngineConfig) -> Core:
    # Imported here, when the worker already watches its parent: importing torch takes seconds.
    with collecting_later():
        from transformers.utils.logging import disable_progress_bar

        from engine.core import EngineCore

        disable_progress_bar()  # it does not belong in a log, and fails once nobody reads stderr
        return EngineCore.load(config)


if __name__ == "__main__":
    sys.exit(main(load))
