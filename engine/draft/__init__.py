"""Drafts, which propose trees of tokens, and the target state that they need."""
