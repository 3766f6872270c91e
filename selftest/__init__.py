"""``specvlm selftest``: whether this machine computes what it should, and what speculation gains on it."""
