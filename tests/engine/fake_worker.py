"""The engine process with a fake core inside."""

from __future__ import annotations

import sys

from engine.ipc.worker import main
from tests.engine.fake_core import FakeCore

if __name__ == "__main__":
    sys.exit(main(FakeCore.load))
