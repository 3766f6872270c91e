"""Loading without the collector: what is loaded stays, and looking for garbage among it takes long."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """No garbage collection inside, once at the end; what is left then is never looked at again.

    For the start of a process. A fifth of the time that importing torch and transformers takes is saved, and
    each full collection while serving is short.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()
