"""Failures that a caller can act on. Their texts are safe to show to a client."""

from __future__ import annotations


class PromptError(ValueError):
    """This chat cannot become a prompt for this model."""


class UnsupportedModelError(ValueError):
    """The tokenizer or processor of this model does something that is not handled here."""
