"""The engine: schedules, runs the model, emits token ids. See ``docs/architecture.md``."""
