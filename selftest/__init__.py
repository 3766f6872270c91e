"""``specvlm selftest``: checks that this machine computes correctly, and what speculation gains on it."""
