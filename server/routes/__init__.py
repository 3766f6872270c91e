"""One module per group of endpoints; each turns HTTP into calls and nothing more."""
