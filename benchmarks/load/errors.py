"""What ends a run before it has figures; the message is for the user."""

from __future__ import annotations


class BenchError(Exception):
    """A run that cannot start, or cannot go on."""
