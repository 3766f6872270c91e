"""Measurements taken side by side in one run; each prints JSON with what is needed to repeat it."""
