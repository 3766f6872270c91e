"""The embedded default model: synthetic pictures, training recipe, weights and assembly.

Nothing here depends on the server or the engine. ``demo.pictures`` needs Pillow only; ``demo.build`` imports
torch only when something has to be built; the training modules need torch and transformers.
"""
