"""What clients send and receive, as pydantic models. They know no engine and no HTTP."""
