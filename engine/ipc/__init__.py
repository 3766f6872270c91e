"""The engine in a process of its own, and the client that starts, feeds and watches it."""
