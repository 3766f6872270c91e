"""Requests beside the test's own."""

from __future__ import annotations

import threading
from typing import Any


class Background(threading.Thread):
    """One request in a thread; ``result`` is its response, its text or its exception."""

    def __init__(self, call: Any) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.result = error

    def wait(self) -> Any:
        self.join(timeout=60)
        assert not self.is_alive()
        return self.result
