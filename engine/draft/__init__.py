"""Drafts: what proposes trees of tokens, and what it must see of the target for that."""
