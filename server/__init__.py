"""The HTTP front end: an OpenAI-compatible API over an engine client. No GPU code, no model code."""
