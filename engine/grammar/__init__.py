"""Grammars, which constrain the tokens that may come next."""
