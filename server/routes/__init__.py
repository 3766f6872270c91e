"""One module per group of addresses; each turns HTTP into calls and nothing more."""
