"""How much to speculate: what drafts are worth and what forwards cost."""
