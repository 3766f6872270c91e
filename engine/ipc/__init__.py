"""The engine in a separate process, and the client that starts, feeds and monitors it."""
