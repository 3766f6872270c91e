"""Raises the limit of open files: each connection takes a file descriptor, and so does the engine."""

from __future__ import annotations

import contextlib
import resource


def allow_many_files() -> None:
    """Raise this process's soft limit of open files to its hard limit; the engine inherits it.

    The usual soft limit of 1024 is for programs that use ``select``, and a few hundred streams with their
    pictures reach it. A system that accepts no such limit keeps its own.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
