"""Errors of an engine as a whole. An error of a single request is a ``RequestError``."""

from __future__ import annotations


class ModelLoadError(Exception):
    """The model cannot be served, and retrying would not help. The message is for the operator."""
