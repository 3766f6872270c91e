"""Failures that a caller can act on. Their texts are safe to show to a client."""

from __future__ import annotations


class PromptError(ValueError):
    """A chat cannot be turned into a prompt for this model."""


class UnsupportedModelError(ValueError):
    """The tokenizer or processor of this model does something that is not supported here."""
