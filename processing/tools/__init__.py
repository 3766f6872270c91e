"""Functions that a model may call, and answers in a given format: prompts, grammars, parsing of output.

No HTTP, no engine. A model's *style* says how calls are written; everything else follows from it.
"""
