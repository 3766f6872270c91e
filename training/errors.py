"""What can be wrong with a user's data or settings; the message is for the user."""

from __future__ import annotations


class TrainingError(ValueError):
    """A run that cannot start or go on as it was asked to."""


class DataError(TrainingError):
    """Training data that cannot be read; begins with the file and the line."""
