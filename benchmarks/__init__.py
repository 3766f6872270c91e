"""Benchmarks that compare alternatives within one run; each prints JSON with what is needed to repeat it."""
