"""Errors in the user's data or settings; their messages are shown to the user."""

from __future__ import annotations


class TrainingError(ValueError):
    """A run cannot start or continue as requested."""


class DataError(TrainingError):
    """Training data cannot be read; the message begins with the file and the line."""
