"""Functions that a model may call, and answers in a given form: prompts, grammars, reading what was written.

No HTTP, no engine. A model *style* says how calls are spelled; everything else follows from it.
"""
