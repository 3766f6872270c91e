"""Errors that end a run; their messages are shown to the user."""

from __future__ import annotations


class BenchError(Exception):
    """A run cannot start or continue."""
