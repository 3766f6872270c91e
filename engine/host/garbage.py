"""Loading without the collector: what is loaded stays, and looking for garbage among it takes long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """No garbage collection inside, once at the end; what is left then is never looked at again.

    For the start of a process: importing torch and transformers takes a tenth to a quarter less time, and
    full collections while serving have less to look at.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
