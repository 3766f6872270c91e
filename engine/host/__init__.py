"""The host environment of the engine: processors, memory, folders, logs."""
