"""``specvlm bench``: load on any server that speaks the OpenAI API, and what its users would have felt.

Knows HTTP and published data sets; nothing of the engine. Measurements of the engine itself are beside it.
"""
