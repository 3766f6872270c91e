"""``specvlm bench``: load-tests any server with an OpenAI-compatible API, as its users would experience it.

Knows HTTP and published data sets, nothing of the engine, whose measurements are in the parent package.
"""
