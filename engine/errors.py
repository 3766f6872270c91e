"""What can go wrong with an engine as a whole. What goes wrong with one request is a ``RequestError``."""

from __future__ import annotations


class ModelLoadError(Exception):
    """The model cannot be served, and trying again would not help. The message is for the operator."""
