"""Tiny vision-language models, one builder a file; ``tests.models`` lists them."""
