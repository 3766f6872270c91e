"""The machine around the engine: processors, memory, folders, logs."""
