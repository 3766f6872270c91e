"""The engine: schedules requests, runs the model and emits token ids. See ``docs/architecture.md``."""
