"""Pydantic models of what clients send and receive. Independent of the engine and of HTTP."""
